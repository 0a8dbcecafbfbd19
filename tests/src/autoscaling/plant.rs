//! Replicas of a model: they start, serve what comes, refuse what would wait too long, and drain.
//!
//! A pod runs up to [`Model::instances`] batches at once, each of up to [`Model::batch`] samples; the rest waits in order, and an
//! instance that is free takes what is there without waiting for more. One request is one sample. A step is: pods get ready ▸
//! requests are spread ▸ each pod takes or refuses them, starts and ends batches until the next step ▸ drained pods go.

use std::collections::VecDeque;

use super::STEPS_PER_SECOND;

/// Requests come and batches end at ticks, of which a step has so many.
pub const TICKS_PER_STEP: u64 = 20;

/// What a replica can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// Batches that run at once.
    pub instances: u32,
    /// Samples in a batch, at most.
    pub batch: u32,
    /// Ticks that a batch takes, however few samples are in it.
    pub batch_ticks: u64,
    /// Ticks that each sample of it adds.
    pub sample_ticks: u64,
    /// Steps that a sample may wait: what would wait longer is refused.
    pub max_wait_steps: u64,
    /// Steps that a sample may wait and still be answered in time.
    pub late_wait_steps: u64,
}

impl Model {
    /// Samples that run at once, at most.
    #[must_use]
    pub fn places(&self) -> u32 {
        self.instances * self.batch
    }

    /// Samples that a replica answers in a second, at most.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let ticks_per_second = (TICKS_PER_STEP * STEPS_PER_SECOND) as f64;
        f64::from(self.places()) * ticks_per_second / self.run_ticks(self.batch) as f64
    }

    fn run_ticks(&self, samples: u32) -> u64 {
        self.batch_ticks + self.sample_ticks * u64::from(samples)
    }

    /// Samples that may wait.
    fn queue_bound(&self) -> u32 {
        (self.max_wait_steps * TICKS_PER_STEP * u64::from(self.places()) / self.run_ticks(self.batch)) as u32
    }
}

/// Where the replicas run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// What each can do.
    pub model: Model,
    /// Steps from a pod's node to its first request, on average: image, container, loading and warming up.
    pub start_steps: u64,
    /// Those of them that the pod itself spends on loading and warming up, and can tell of.
    pub load_steps: u64,
    /// A start takes up to this share more or less.
    pub start_jitter: f64,
    /// Pods that get a node; the others stay pending.
    pub nodes: usize,
    /// A pod gets up to this share more or less of the requests than another.
    pub imbalance: f64,
    /// Steps for which a pod that served stays, at least, once it is to go: its connections get time to move.
    pub drain_steps: u64,
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No node has room for it.
    Pending,
    /// It fetches and loads until then.
    Starting(u64),
    /// It serves.
    Ready,
    /// It ends what it has, gets nothing new, and stays until then at least.
    Draining(u64),
}

/// What a pod has done since it began; integrals are over ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that came.
    pub arrived: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Those that were answered in time.
    pub within: u64,
    /// Integral of the samples that run and wait.
    pub load_ticks: u64,
    /// Integral of the samples that wait.
    pub queued_ticks: u64,
    /// Sum of the latencies of what was answered.
    pub latency_ticks: u64,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        let Self { arrived, refused, answered, within, load_ticks, queued_ticks, latency_ticks } = *other;
        self.arrived += arrived;
        self.refused += refused;
        self.answered += answered;
        self.within += within;
        self.load_ticks += load_ticks;
        self.queued_ticks += queued_ticks;
        self.latency_ticks += latency_ticks;
    }
}

/// The average of an integral that has grown by so much within so many steps.
#[must_use]
pub fn average(ticks: u64, steps: u64) -> f64 {
    ticks as f64 / (steps * TICKS_PER_STEP) as f64
}

/// Batches that end together.
#[derive(Debug, Clone, Copy)]
struct Ending {
    at: u64,
    batches: u32,
    samples: u32,
    within: u32,
    latency_ticks: u64,
}

/// A replica.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Never that of another pod of the run.
    pub id: u64,
    /// How far it is.
    pub phase: Phase,
    /// What it has done.
    pub totals: Totals,
    /// Samples that wait.
    pub queued: u32,
    /// Samples that run.
    pub running: u32,
    /// Instances that run nothing.
    free: u32,
    weight: f64,
    /// When the requests of this step come.
    coming: VecDeque<u64>,
    /// When the samples that wait came.
    queue: VecDeque<u64>,
    /// What runs, that first which ends first.
    endings: VecDeque<Ending>,
}

impl Pod {
    fn new(id: u64, weight: f64, model: &Model) -> Self {
        Self {
            id,
            phase: Phase::Pending,
            totals: Totals::default(),
            queued: 0,
            running: 0,
            free: model.instances,
            weight,
            coming: VecDeque::new(),
            queue: VecDeque::new(),
            endings: VecDeque::new(),
        }
    }

    /// Samples that run and wait.
    #[must_use]
    pub fn load(&self) -> u32 {
        self.running + self.queued
    }

    fn is_drained(&self, now: u64) -> bool {
        matches!(self.phase, Phase::Draining(until) if until <= now) && self.load() == 0
    }

    /// From the step `now` until the next one.
    fn step(&mut self, now: u64, model: &Model) {
        let (mut at, until) = (now * TICKS_PER_STEP, (now + 1) * TICKS_PER_STEP);
        loop {
            let ends = self.endings.front().map_or(until, |ending| ending.at);
            let comes = self.coming.front().copied().unwrap_or(until);
            let next = ends.min(comes).min(until);
            self.totals.load_ticks += (next - at) * u64::from(self.load());
            self.totals.queued_ticks += (next - at) * u64::from(self.queued);
            at = next;
            if at == until {
                return;
            }
            if ends == at {
                self.end();
            } else {
                self.admit(at);
            }
            self.start(at, model);
            self.refuse(model);
        }
    }

    fn end(&mut self) {
        let Some(ending) = self.endings.pop_front() else { return };
        self.free += ending.batches;
        self.running -= ending.samples;
        self.totals.answered += u64::from(ending.samples);
        self.totals.within += u64::from(ending.within);
        self.totals.latency_ticks += ending.latency_ticks;
    }

    fn admit(&mut self, at: u64) {
        self.coming.pop_front();
        self.totals.arrived += 1;
        self.queued += 1;
        self.queue.push_back(at);
    }

    fn start(&mut self, at: u64, model: &Model) {
        while self.free > 0 && self.queued > 0 {
            let samples = self.queued.min(model.batch);
            let mut batch =
                Ending { at: at + model.run_ticks(samples), batches: 1, samples, within: 0, latency_ticks: 0 };
            self.free -= 1;
            self.running += samples;
            self.queued -= samples;
            for came in self.queue.drain(..samples as usize) {
                batch.within += u32::from(at - came <= model.late_wait_steps * TICKS_PER_STEP);
                batch.latency_ticks += batch.at - came;
            }
            self.run(batch);
        }
    }

    fn run(&mut self, batch: Ending) {
        let place = self.endings.partition_point(|ending| ending.at < batch.at);
        match self.endings.get_mut(place) {
            Some(ending) if ending.at == batch.at => {
                ending.batches += batch.batches;
                ending.samples += batch.samples;
                ending.within += batch.within;
                ending.latency_ticks += batch.latency_ticks;
            }
            _ => self.endings.insert(place, batch),
        }
    }

    /// What came last waits longest: it is what would wait too long.
    fn refuse(&mut self, model: &Model) {
        let excess = self.queued.saturating_sub(model.queue_bound());
        self.queued -= excess;
        self.totals.refused += u64::from(excess);
        self.queue.truncate(self.queued as usize);
    }
}

/// All replicas of a model.
#[derive(Debug)]
pub struct Plant {
    settings: Settings,
    rng: fastrand::Rng,
    now: u64,
    wanted: u32,
    next_id: u64,
    pods: Vec<Pod>,
    /// Which of them are ready; to be found anew after every change of a phase.
    ready: Vec<usize>,
    /// Of pods that are gone, and of requests that found none.
    gone: Totals,
    node_steps: u64,
}

impl Plant {
    /// So many replicas that serve.
    #[must_use]
    pub fn new(settings: &Settings, replicas: u32, seed: u64) -> Self {
        let mut plant = Self {
            settings: *settings,
            rng: fastrand::Rng::with_seed(seed),
            now: 0,
            wanted: 0,
            next_id: 0,
            pods: Vec::new(),
            ready: Vec::new(),
            gone: Totals::default(),
            node_steps: 0,
        };
        plant.scale(replicas);
        for pod in plant.pods.iter_mut().filter(|pod| pod.phase != Phase::Pending) {
            pod.phase = Phase::Ready;
        }
        plant.find_ready();
        plant
    }

    /// The time, in steps.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Replicas that are asked for.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// All pods, the oldest first.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The pods that serve and get requests.
    pub fn ready(&self) -> impl Iterator<Item = &Pod> {
        self.ready.iter().map(|number| &self.pods[*number])
    }

    /// What all pods have done, those that are gone too.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = self.gone;
        self.pods.iter().for_each(|pod| totals.add(&pod.totals));
        totals
    }

    /// Time that pods have held a node, in steps: from the begin of their start to the end of their drain.
    #[must_use]
    pub fn node_steps(&self) -> u64 {
        self.node_steps
    }

    /// One step, in which so many requests come.
    pub fn step(&mut self, arrivals: u32) {
        self.now += 1;
        if self.is_any(|phase| matches!(phase, Phase::Pending | Phase::Starting(_))) {
            self.start_pods();
        }
        self.spread(arrivals);
        let (now, model) = (self.now, self.settings.model);
        self.pods.iter_mut().filter(|pod| pod.phase >= Phase::Ready).for_each(|pod| pod.step(now, &model));
        if self.is_any(|phase| matches!(phase, Phase::Draining(_))) {
            self.remove(|pod| pod.is_drained(now));
        }
        self.node_steps += self.on_nodes() as u64;
    }

    fn is_any(&self, is: impl Fn(Phase) -> bool) -> bool {
        self.pods.len() > self.ready.len() && self.pods.iter().any(|pod| is(pod.phase))
    }

    fn find_ready(&mut self) {
        self.ready.clear();
        self.ready.extend((0..self.pods.len()).filter(|number| self.pods[*number].phase == Phase::Ready));
    }

    /// Asks for so many replicas. Those go first that would be missed least: pending, then starting, then the youngest.
    pub fn scale(&mut self, wanted: u32) {
        if wanted == self.wanted {
            return;
        }
        self.wanted = wanted;
        let mut kept: Vec<(Phase, u64)> = self.pods.iter().map(|pod| (pod.phase, pod.id)).collect();
        kept.retain(|(phase, _)| !matches!(phase, Phase::Draining(_)));
        let excess = kept.len().saturating_sub(wanted as usize);
        kept.sort_by_key(|(phase, id)| (rank(*phase), std::cmp::Reverse(*id)));
        let going: Vec<u64> = kept.iter().take(excess).map(|(_, id)| *id).collect();
        let (now, drained) = (self.now, self.now + self.settings.drain_steps);
        for pod in self.pods.iter_mut().filter(|pod| going.contains(&pod.id)) {
            // Who never served has no connections.
            pod.phase = Phase::Draining(if pod.phase == Phase::Ready { drained } else { now });
        }
        self.remove(|pod| pod.is_drained(now));
        for _ in kept.len()..wanted as usize {
            let weight = 1.0 + self.settings.imbalance * (2.0 * self.rng.f64() - 1.0);
            self.pods.push(Pod::new(self.next_id, weight, &self.settings.model));
            self.next_id += 1;
        }
        self.start_pods();
    }

    fn on_nodes(&self) -> usize {
        self.pods.iter().filter(|pod| pod.phase != Phase::Pending).count()
    }

    fn start_pods(&mut self) {
        let mut free = self.settings.nodes.saturating_sub(self.on_nodes());
        for pod in &mut self.pods {
            match pod.phase {
                Phase::Pending if free > 0 => {
                    let factor = 1.0 + self.settings.start_jitter * (2.0 * self.rng.f64() - 1.0);
                    pod.phase = Phase::Starting(self.now + (self.settings.start_steps as f64 * factor) as u64);
                    free -= 1;
                }
                Phase::Starting(at) if at <= self.now => pod.phase = Phase::Ready,
                _ => {}
            }
        }
        self.find_ready();
    }

    /// Every request goes to a pod by chance, in proportion to the pods' weights, at its own time within the step.
    fn spread(&mut self, arrivals: u32) {
        if self.ready.is_empty() {
            self.gone.arrived += u64::from(arrivals);
            self.gone.refused += u64::from(arrivals);
            return;
        }
        let heaviest = 1.0 + self.settings.imbalance;
        for arrival in 0..u64::from(arrivals) {
            let part = (arrival as f64 + self.rng.f64()) / f64::from(arrivals);
            let at = self.now * TICKS_PER_STEP + (part * TICKS_PER_STEP as f64) as u64;
            loop {
                // One draw for both: the upper half chooses the pod, the lower one whether it gets the request.
                let draw = self.rng.u64(..);
                let number = ((draw >> 32) * self.ready.len() as u64) >> 32;
                let pod = &mut self.pods[self.ready[number as usize]];
                if f64::from(draw as u32) * heaviest <= pod.weight * f64::from(u32::MAX) {
                    pod.coming.push_back(at);
                    break;
                }
            }
        }
    }

    fn remove(&mut self, is_gone: impl Fn(&Pod) -> bool) {
        let gone = &mut self.gone;
        self.pods.retain(|pod| {
            let goes = is_gone(pod);
            if goes {
                gone.add(&pod.totals);
            }
            !goes
        });
        self.find_ready();
    }
}

fn rank(phase: Phase) -> u8 {
    match phase {
        Phase::Pending => 0,
        Phase::Starting(_) => 1,
        Phase::Ready => 2,
        Phase::Draining(_) => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places of their own; batches that take as long however full they are; batches in which each sample takes its time; several
    /// batches at once.
    const MODELS: [Model; 4] = [
        Model { instances: 4, batch: 1, batch_ticks: 40, sample_ticks: 0, max_wait_steps: 5, late_wait_steps: 2 },
        Model { instances: 1, batch: 4, batch_ticks: 40, sample_ticks: 0, max_wait_steps: 5, late_wait_steps: 2 },
        Model { instances: 1, batch: 4, batch_ticks: 4, sample_ticks: 9, max_wait_steps: 5, late_wait_steps: 1 },
        Model { instances: 2, batch: 3, batch_ticks: 30, sample_ticks: 5, max_wait_steps: 5, late_wait_steps: 1 },
    ];

    fn settings() -> Settings {
        Settings {
            model: MODELS[0],
            start_steps: 30,
            load_steps: 15,
            start_jitter: 0.2,
            nodes: 6,
            imbalance: 0.1,
            drain_steps: 30,
        }
    }

    fn waiting(plant: &Plant) -> u64 {
        plant.pods().iter().map(|pod| u64::from(pod.load())).sum()
    }

    #[test]
    fn every_request_is_answered_refused_or_still_there() {
        MODELS.into_iter().for_each(|model| each_is_answered_refused_or_still_there(&Settings { model, ..settings() }));
    }

    fn each_is_answered_refused_or_still_there(settings: &Settings) {
        let mut plant = Plant::new(settings, 2, 7);
        let mut rng = fastrand::Rng::with_seed(8);
        let mut arrived = 0;
        for step in 0..5_000 {
            let arrivals = rng.u32(..14);
            arrived += u64::from(arrivals);
            plant.step(arrivals);
            if step % 40 == 0 {
                plant.scale(rng.u32(1..9));
            }
            let totals = plant.totals();
            assert_eq!(totals.arrived, arrived);
            assert_eq!(totals.arrived, totals.answered + totals.refused + waiting(&plant));
        }
        let totals = plant.totals();
        assert!(totals.refused > 0 && totals.within < totals.answered, "{totals:?}");
    }

    #[test]
    fn what_is_there_on_average_is_the_rate_times_the_latency() {
        for model in MODELS {
            let mut plant = Plant::new(&Settings { model, ..settings() }, 3, 1);
            let mut rng = fastrand::Rng::with_seed(2);
            let steps = 50_000;
            for _ in 0..steps {
                plant.step(rng.u32(..9));
            }
            let totals = plant.totals();
            let by_law = totals.latency_ticks as f64 / (steps * TICKS_PER_STEP) as f64;
            let found = average(totals.load_ticks, steps);
            assert!((found - by_law).abs() < 1e-3 * found, "{found} and {by_law}");
            assert!(totals.queued_ticks > 0);
        }
    }

    #[test]
    fn a_full_replica_answers_at_its_rate_and_makes_nobody_wait_longer_than_it_may() {
        for model in MODELS {
            let mut plant = Plant::new(&Settings { model, ..settings() }, 1, 1);
            for _ in 0..1_000 {
                plant.step(10);
            }
            let answered = plant.totals().answered as f64 / (1_000 / STEPS_PER_SECOND) as f64;
            assert!((answered - model.rate()).abs() < 0.3, "{answered} and {}", model.rate());
            let run_ticks = model.run_ticks(model.batch);
            // Before a batch of its own, those that are before it and the one that runs.
            let longest = model.max_wait_steps * TICKS_PER_STEP + 2 * run_ticks;
            assert!(plant.totals().latency_ticks <= plant.totals().answered * longest);
        }
    }

    #[test]
    fn an_instance_that_is_free_takes_what_is_there_and_runs_it_as_one() {
        let one = |model, arrivals| {
            let mut plant = Plant::new(&Settings { model, ..settings() }, 1, 1);
            plant.step(arrivals);
            (plant.pods()[0].running, plant.pods()[0].queued)
        };
        assert_eq!(one(MODELS[0], 3), (3, 0), "each in its place");
        assert_eq!(one(MODELS[1], 3), (1, 2), "the others come while the first one runs");
        assert_eq!(one(MODELS[2], 3), (1, 1), "the second runs by now");
        assert_eq!(one(MODELS[2], 1), (0, 0), "one alone is answered sooner than a batch is");
    }

    #[test]
    fn a_pod_without_a_node_stays_pending_and_starts_when_one_is_free() {
        let mut plant = Plant::new(&settings(), 6, 3);
        plant.scale(8);
        for _ in 0..100 {
            plant.step(0);
        }
        let phases = |plant: &Plant, phase| plant.pods().iter().filter(|pod| pod.phase == phase).count();
        assert_eq!((phases(&plant, Phase::Ready), phases(&plant, Phase::Pending)), (6, 2));
        plant.scale(5);
        assert_eq!((phases(&plant, Phase::Ready), phases(&plant, Phase::Pending)), (5, 0));
        plant.scale(6);
        assert_eq!(phases(&plant, Phase::Pending), 1, "the one that drains has the node still");
        for _ in 0..40 {
            plant.step(0);
        }
        assert!(matches!(plant.pods().last().map(|pod| pod.phase), Some(Phase::Starting(_))));
        for _ in 0..100 {
            plant.step(0);
        }
        assert_eq!(phases(&plant, Phase::Ready), 6);
    }

    #[test]
    fn a_pod_that_goes_ends_what_it_has() {
        let mut plant = Plant::new(&settings(), 2, 3);
        plant.step(16);
        let before = waiting(&plant);
        plant.scale(1);
        assert_eq!(plant.pods().len(), 2, "it drains");
        for _ in 0..20 {
            plant.step(0);
        }
        assert_eq!((plant.pods().len(), plant.totals().answered), (2, before), "its connections have time to move");
        for _ in 0..20 {
            plant.step(0);
        }
        assert_eq!(plant.pods().len(), 1);
    }
}
