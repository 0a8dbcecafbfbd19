//! Replicas of a model: they start, serve what comes, refuse what would wait too long, and drain.
//!
//! A pod runs up to [`Model::slots`] samples at once, each for [`Model::run_steps`]; the rest waits in order. One request is
//! one sample. A step is: pods get ready ▸ requests are spread ▸ each pod ends, refuses and starts samples ▸ drained pods go.

use std::collections::VecDeque;

use super::STEPS_PER_SECOND;

/// What a replica can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// Samples that run at once.
    pub slots: u32,
    /// Steps that a run takes.
    pub run_steps: u64,
    /// Steps that a sample may wait: what would wait longer is refused.
    pub max_wait_steps: u64,
    /// Steps that a sample may wait and still be answered in time.
    pub late_wait_steps: u64,
}

impl Model {
    /// Samples that a replica answers in a second, at most.
    #[must_use]
    pub fn rate(&self) -> f64 {
        f64::from(self.slots) * STEPS_PER_SECOND as f64 / self.run_steps as f64
    }

    /// Samples that may wait.
    fn queue_bound(&self) -> u32 {
        (self.max_wait_steps * u64::from(self.slots) / self.run_steps) as u32
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

/// What a pod has done since it began; integrals are over steps.
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
    pub load_steps: u64,
    /// Integral of the samples that wait.
    pub queued_steps: u64,
    /// Sum of the latencies of what was answered.
    pub latency_steps: u64,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        let Self { arrived, refused, answered, within, load_steps, queued_steps, latency_steps } = *other;
        self.arrived += arrived;
        self.refused += refused;
        self.answered += answered;
        self.within += within;
        self.load_steps += load_steps;
        self.queued_steps += queued_steps;
        self.latency_steps += latency_steps;
    }
}

/// Samples that end together.
#[derive(Debug, Clone, Copy, Default)]
struct Ending {
    samples: u32,
    within: u32,
    latency_steps: u64,
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
    weight: f64,
    arriving: u32,
    /// When they came and how many, the oldest first.
    queue: VecDeque<(u64, u32)>,
    /// By the step at which they end, modulo the length of a run.
    endings: Vec<Ending>,
}

impl Pod {
    fn new(id: u64, weight: f64, model: &Model) -> Self {
        Self {
            id,
            phase: Phase::Pending,
            totals: Totals::default(),
            queued: 0,
            running: 0,
            weight,
            arriving: 0,
            queue: VecDeque::new(),
            endings: vec![Ending::default(); model.run_steps as usize],
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

    fn step(&mut self, now: u64, model: &Model) {
        self.end(now, model);
        self.admit(now);
        self.start(now, model);
        self.refuse(model);
        self.totals.load_steps += u64::from(self.load());
        self.totals.queued_steps += u64::from(self.queued);
    }

    fn end(&mut self, now: u64, model: &Model) {
        let ending = std::mem::take(&mut self.endings[(now % model.run_steps) as usize]);
        self.running -= ending.samples;
        self.totals.answered += u64::from(ending.samples);
        self.totals.within += u64::from(ending.within);
        self.totals.latency_steps += ending.latency_steps;
    }

    fn admit(&mut self, now: u64) {
        let arriving = std::mem::take(&mut self.arriving);
        if arriving > 0 {
            self.totals.arrived += u64::from(arriving);
            self.queued += arriving;
            self.queue.push_back((now, arriving));
        }
    }

    fn start(&mut self, now: u64, model: &Model) {
        let ending = &mut self.endings[(now % model.run_steps) as usize];
        while self.running < model.slots {
            let Some((arrived, waiting)) = self.queue.front_mut() else { break };
            let starting = (*waiting).min(model.slots - self.running);
            let waited = now - *arrived;
            ending.samples += starting;
            ending.within += if waited <= model.late_wait_steps { starting } else { 0 };
            ending.latency_steps += u64::from(starting) * (waited + model.run_steps);
            self.running += starting;
            self.queued -= starting;
            *waiting -= starting;
            if *waiting == 0 {
                self.queue.pop_front();
            }
        }
    }

    /// What came last waits longest: it is what would wait too long.
    fn refuse(&mut self, model: &Model) {
        let mut excess = self.queued.saturating_sub(model.queue_bound());
        self.queued -= excess;
        self.totals.refused += u64::from(excess);
        while excess > 0 {
            let Some((_, waiting)) = self.queue.back_mut() else { break };
            let refused = excess.min(*waiting);
            *waiting -= refused;
            excess -= refused;
            if *waiting == 0 {
                self.queue.pop_back();
            }
        }
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

    /// Every request goes to a pod by chance, in proportion to the pods' weights.
    fn spread(&mut self, arrivals: u32) {
        if self.ready.is_empty() {
            self.gone.arrived += u64::from(arrivals);
            self.gone.refused += u64::from(arrivals);
            return;
        }
        let heaviest = 1.0 + self.settings.imbalance;
        for _ in 0..arrivals {
            loop {
                // One draw for both: the upper half chooses the pod, the lower one whether it gets the request.
                let draw = self.rng.u64(..);
                let number = ((draw >> 32) * self.ready.len() as u64) >> 32;
                let pod = &mut self.pods[self.ready[number as usize]];
                if f64::from(draw as u32) * heaviest <= pod.weight * f64::from(u32::MAX) {
                    pod.arriving += 1;
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

    fn settings() -> Settings {
        let model = Model { slots: 4, run_steps: 2, max_wait_steps: 5, late_wait_steps: 2 };
        Settings {
            model,
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
        let mut plant = Plant::new(&settings(), 2, 7);
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
        let mut plant = Plant::new(&settings(), 3, 1);
        let mut rng = fastrand::Rng::with_seed(2);
        let steps = 50_000;
        for _ in 0..steps {
            plant.step(rng.u32(..9));
        }
        let totals = plant.totals();
        let answered = totals.answered as f64;
        let by_law = answered / steps as f64 * (totals.latency_steps as f64 / answered);
        let found = totals.load_steps as f64 / steps as f64;
        assert!((found - by_law).abs() < 1e-3 * found, "{found} and {by_law}");
        assert!(totals.queued_steps > 0);
    }

    #[test]
    fn a_full_replica_answers_at_its_rate_and_makes_nobody_wait_longer_than_it_may() {
        let settings = settings();
        let mut plant = Plant::new(&settings, 1, 1);
        for _ in 0..1_000 {
            plant.step(10);
        }
        let answered = plant.totals().answered as f64 / (1_000 / STEPS_PER_SECOND) as f64;
        assert!((answered - settings.model.rate()).abs() < 0.1, "{answered}");
        let longest = settings.model.max_wait_steps + settings.model.run_steps;
        assert!(plant.totals().latency_steps <= plant.totals().answered * longest);
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
