//! Reads `GET :9090/load` of every ready pod of a model and makes one [`Reading`] of it.
//!
//! Averages come from differences of what a pod has counted, divided by the pod's own clock: they are exact however seldom it is
//! asked. A pod that was started anew counts from nothing, so its first answer has no difference. One that does not answer is
//! taken for what it told last, as long as that is not stale.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use crds::load::{self, Load, ModelLoad};
use futures::future::join_all;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use k8s_openapi::api::core::v1::Pod;
use tokio::{
    sync::Semaphore,
    time::{self, Instant},
};

use super::{Reading, Share};
use crate::{
    info::{Life, address, life},
    observe::ready_since,
};

/// A pod that does not answer by then counts as silent this time.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Questions under way at once, of all models.
const CONCURRENT: usize = 256;

/// An answer is never longer than this.
const LONGEST_BYTES: usize = 64 << 10;

/// A pod that has been silent for longer than numbers last is asked once in so many readings: each question to it takes up the
/// whole time-out, and there may be a namespace full of them behind a NetworkPolicy.
const SILENT_ASKED_EVERY: u32 = 5;

/// Connections are kept over a few periods.
const KEPT_IDLE: Duration = Duration::from_secs(30);

/// Asks pods. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct Reader {
    client: Client<HttpConnector, Empty<Bytes>>,
    permits: Arc<Semaphore>,
}

/// What the pods of one model have told so far, by the life of their container.
#[derive(Debug, Default)]
pub struct Told {
    answers: HashMap<Life, Answer>,
    silent: HashMap<Life, Silence>,
    last_reading: Option<Instant>,
    /// The latency that answers were counted by.
    within: Option<Duration>,
}

/// Readings in a row in which a ready pod told nothing.
#[derive(Debug, Clone, Copy)]
struct Silence {
    since: Instant,
    readings: u32,
}

/// A pod's last answer, and what happened between the one before it and this.
#[derive(Debug, Clone)]
struct Answer {
    at: Instant,
    load: Load,
    span: Duration,
    average: Samples,
    now: Samples,
    refused: u64,
    answered: u64,
    answers: BTreeMap<String, Share>,
}

/// Samples in a pod: those of the model that has most.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Samples {
    load: f64,
    /// Those that wait.
    queued: f64,
    /// Those of them that wait for others: in the queue, or to be decoded.
    in_queue: f64,
}

impl Samples {
    /// What a model has now. What is being decoded waits for the model as much as what is in its queue: a request for one sample, as
    /// long as nobody knows how many it has.
    fn now(model: &ModelLoad) -> Self {
        Self::of([model.decoding, model.queued, model.inflight].map(|number| number as f64))
    }

    /// What it had on average in the `span` seconds between two answers.
    fn average(before: &ModelLoad, now: &ModelLoad, span: f64) -> Self {
        let average = |integral: fn(&ModelLoad) -> f64| (integral(now) - integral(before)).max(0.0) / span;
        let decoding = average(|model| model.decoding_request_seconds);
        let queued = average(|model| model.queued_sample_seconds);
        Self::of([decoding, queued, average(|model| model.inflight_sample_seconds)])
    }

    fn of([decoding, queued, inflight]: [f64; 3]) -> Self {
        Self { load: decoding + queued + inflight, queued: decoding + queued, in_queue: queued }
    }
}

impl Default for Reader {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT_IDLE)
            .pool_max_idle_per_host(1)
            .build(connector);
        Self { client, permits: Arc::new(Semaphore::new(CONCURRENT)) }
    }
}

impl Reader {
    /// Asks the ready ones of these pods. `at` is the time of the reading, `within` the latency that answers are counted by.
    pub async fn read<'a>(
        &self,
        pods: impl Iterator<Item = &'a Pod>,
        told: &mut Told,
        at: Duration,
        within: Option<Duration>,
        stale_after: Duration,
    ) -> Reading {
        let ready = pods.filter(|pod| ready_since(pod).is_some() && pod.metadata.deletion_timestamp.is_none());
        let asked = ready.filter_map(|pod| Some((life(pod)?, address(pod)?)));
        let (now, silent) = (Instant::now(), &told.silent);
        let answers = join_all(asked.map(|(life, address)| async move {
            let is_asked = silent.get(&life).is_none_or(|silence| silence.is_asked(now, stale_after));
            let load = if is_asked { self.ask(&address, within).await } else { None };
            (life, load)
        }));
        let answers = answers.await;
        told.counts_by(within);
        told.take(answers, Instant::now(), at, stale_after)
    }

    async fn ask(&self, address: &str, within: Option<Duration>) -> Option<Load> {
        let query = within.map(|within| format!("?{}={}", load::WITHIN, within.as_millis())).unwrap_or_default();
        let url = format!("http://{address}{}{query}", load::PATH);
        let _permit = self.permits.acquire().await.ok()?;
        let ask = async {
            let answer = self.client.get(url.parse().ok()?).await.ok()?;
            if !answer.status().is_success() {
                return None;
            }
            let body = Limited::new(answer.into_body(), LONGEST_BYTES).collect().await.ok()?;
            serde_json::from_slice::<Load>(&body.to_bytes()).ok().filter(is_of_a_pod)
        };
        let answer = time::timeout(TIMEOUT, ask).await.ok().flatten();
        if answer.is_none() {
            tracing::debug!(url, "a ready pod does not tell its load");
        }
        answer
    }
}

/// Whether it is what a server of ours that is ready tells: other JSON, of whatever answers in its place, says nothing of the load,
/// and must not count as none.
fn is_of_a_pod(load: &Load) -> bool {
    !load.started.is_empty() && load.uptime_seconds > 0.0 && !load.models.is_empty()
}

impl Silence {
    fn is_asked(self, now: Instant, stale_after: Duration) -> bool {
        now.duration_since(self.since) <= stale_after || self.readings.is_multiple_of(SILENT_ASKED_EVERY)
    }
}

impl Told {
    /// What was counted by another latency has no difference from what is counted by this.
    fn counts_by(&mut self, within: Option<Duration>) {
        if std::mem::replace(&mut self.within, within) != within {
            let models = self.answers.values_mut().flat_map(|answer| &mut answer.load.models);
            models.for_each(|model| model.within_total = None);
        }
    }

    /// Takes what the ready pods said, or did not; pods that are not among them are forgotten.
    fn take(
        &mut self,
        answers: Vec<(Life, Option<Load>)>,
        now: Instant,
        at: Duration,
        stale_after: Duration,
    ) -> Reading {
        let (mut before, mut silent) = (std::mem::take(&mut self.answers), std::mem::take(&mut self.silent));
        let mut reading = Reading { at, ready: u32::try_from(answers.len()).unwrap_or(u32::MAX), ..Reading::default() };
        for (life, load) in answers {
            let last = before.remove(&life);
            if load.is_none() {
                let silence = silent.remove(&life).unwrap_or(Silence { since: now, readings: 0 });
                self.silent.insert(life.clone(), Silence { readings: silence.readings + 1, ..silence });
            }
            let answer = match load {
                Some(load) => Some(Answer::after(last.as_ref(), load, now)),
                None => last.filter(|last| now.duration_since(last.at) <= stale_after).map(Answer::repeated),
            };
            if let Some(answer) = answer {
                self.answers.insert(life, answer);
            }
        }
        // A pod that was silent in between has a longer span of its own, which is not the reading's.
        let last_reading = self.last_reading.replace(now).filter(|_| self.answers.values().any(Answer::has_span));
        reading.span = last_reading.map(|last| now.duration_since(last)).unwrap_or_default();
        for answer in self.answers.values_mut() {
            answer.average_over(reading.span);
            reading.add(answer);
        }
        reading
    }
}

impl Reading {
    fn add(&mut self, answer: &Answer) {
        self.counted += 1;
        self.load += answer.average.load;
        self.queued += answer.average.queued;
        self.in_queue += answer.average.in_queue;
        self.load_now += answer.now.load;
        self.queued_now += answer.now.queued;
        self.refused += answer.refused;
        self.answered += answer.answered;
        for (model, share) in &answer.answers {
            let sum = self.answers.entry(model.clone()).or_default();
            *sum = Share { answered: sum.answered + share.answered, within: sum.within + share.within };
        }
    }
}

impl Answer {
    fn after(last: Option<&Self>, load: Load, at: Instant) -> Self {
        let before = last.map(|last| &last.load).filter(|before| before.started == load.started);
        let span = before.map(|before| load.uptime_seconds - before.uptime_seconds).filter(|span| *span > 0.0);
        let now = of_pod(load.models.iter().map(Samples::now), load.decoders);
        let mut answer = Self {
            at,
            span: span.and_then(|span| Duration::try_from_secs_f64(span).ok()).unwrap_or_default(),
            average: now,
            now,
            refused: 0,
            answered: 0,
            answers: BTreeMap::new(),
            load,
        };
        if let (Some(before), Some(span)) = (before, span) {
            answer.compare(before.clone(), span);
        }
        answer
    }

    /// What happened since `before`, which is `span` seconds ago.
    fn compare(&mut self, before: Load, span: f64) {
        let before: HashMap<String, ModelLoad> =
            before.models.into_iter().map(|model| (model.name.clone(), model)).collect();
        let known: Vec<_> = self.load.models.iter().filter_map(|it| Some((it, before.get(&it.name)?))).collect();
        if known.is_empty() {
            // No model of before: what there is now stands for the average.
            return;
        }
        let averages = known.iter().map(|(now, before)| Samples::average(before, now, span));
        self.average = of_pod(averages, self.load.decoders);
        self.refused = known.iter().map(|(now, before)| now.refused_total.saturating_sub(before.refused_total)).sum();
        self.answered =
            known.iter().map(|(now, before)| now.answered_total.saturating_sub(before.answered_total)).sum();
        let share = |now: &ModelLoad, before: &ModelLoad| {
            let within = now.within_total?.saturating_sub(before.within_total?);
            let answered = now.answered_total.saturating_sub(before.answered_total);
            // Who was never answered was not answered in time.
            let expired = now.expired_total.saturating_sub(before.expired_total);
            Some(Share { answered: answered.saturating_add(expired), within })
        };
        self.answers = known.iter().filter_map(|(now, before)| Some((now.name.clone(), share(now, before)?))).collect();
    }

    /// A pod that answers for the first time, and others have before, has become ready since: what it has had, it had in that
    /// time. What there is now would count those twice that went from the others to it.
    fn average_over(&mut self, span: Duration) {
        if !self.has_span() && !span.is_zero() {
            let seconds = span.as_secs_f64();
            let nothing = ModelLoad::default();
            let averages = self.load.models.iter().map(|model| Samples::average(&nothing, model, seconds));
            let had = of_pod(averages, self.load.decoders);
            // Never more than now: it may have answered others before.
            self.average = Samples {
                load: had.load.min(self.now.load),
                queued: had.queued.min(self.now.queued),
                in_queue: had.in_queue.min(self.now.in_queue),
            };
        }
    }

    fn has_span(&self) -> bool {
        !self.span.is_zero()
    }

    /// What it told last, once more; what it counted is not counted again.
    fn repeated(self) -> Self {
        Self { refused: 0, answered: 0, answers: BTreeMap::new(), ..self }
    }

    /// Time that loading and warming up took, of the model that took longest; nothing takes longer than a day.
    fn load_time(&self) -> Duration {
        const LONGEST_SECONDS: f64 = 86_400.0;
        let longest = self.load.models.iter().map(|model| model.load_seconds).fold(0.0, f64::max);
        Duration::from_secs_f64(longest.min(LONGEST_SECONDS))
    }
}

impl Told {
    /// Time that loading took, in the pod where it took longest.
    #[must_use]
    pub fn load_time(&self) -> Duration {
        self.answers.values().map(Answer::load_time).max().unwrap_or_default()
    }
}

/// Each number by itself: one model may have most samples and another most that wait. Of what is being decoded as many at once as there
/// are decoders wait for nobody; an older pod does not tell how many those are.
fn of_pod(models: impl Iterator<Item = Samples> + Clone, decoders: u64) -> Samples {
    let decoding = |model: &Samples| model.queued - model.in_queue;
    let all: f64 = models.clone().map(|model| decoding(&model)).sum();
    let is_told = decoders > 0 && all > 0.0;
    let waiting = if is_told { f64::max(1.0 - decoders as f64 / all, 0.0) } else { 0.0 };
    let models = models.map(|model| Samples { in_queue: model.in_queue + waiting * decoding(&model), ..model });
    models.fold(Samples::default(), |most, model| Samples {
        load: most.load.max(model.load),
        queued: most.queued.max(model.queued),
        in_queue: most.in_queue.max(model.in_queue),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALE_AFTER: Duration = Duration::from_secs(15);

    fn life(pod: &str) -> Life {
        (pod.to_owned(), 0)
    }

    /// A pod that has been up so long with one model, which had `samples` in it all the time, a quarter of them waiting.
    fn steady(uptime: f64, samples: u64) -> Load {
        let model = ModelLoad {
            name: "espresso".to_owned(),
            queued: samples / 4,
            inflight: samples - samples / 4,
            queued_sample_seconds: uptime * (samples / 4) as f64,
            inflight_sample_seconds: uptime * (samples - samples / 4) as f64,
            load_seconds: 3.0,
            ..ModelLoad::default()
        };
        Load {
            started: "2026-01-01T00:00:00Z".to_owned(),
            uptime_seconds: uptime,
            models: vec![model],
            ..Load::default()
        }
    }

    fn take(told: &mut Told, second: u64, answers: Vec<(&str, Option<Load>)>, began: Instant) -> Reading {
        let answers = answers.into_iter().map(|(pod, load)| (life(pod), load)).collect();
        let at = Duration::from_secs(second);
        told.take(answers, began + at, at, STALE_AFTER)
    }

    #[test]
    fn averages_are_of_the_time_between_two_answers_and_sums_over_pods() {
        let (mut told, began) = (Told::default(), Instant::now());
        let first = take(&mut told, 0, vec![("a", Some(steady(10.0, 8))), ("b", Some(steady(50.0, 4)))], began);
        assert_eq!((first.ready, first.counted, first.load, first.queued), (2, 2, 12.0, 3.0), "what is there now");
        let mut later = steady(12.0, 8);
        // Empty now, and half of the time before.
        let model = &mut later.models[0];
        (model.queued, model.inflight) = (0, 0);
        (model.queued_sample_seconds, model.inflight_sample_seconds) = (22.0, 66.0);
        let second = take(&mut told, 2, vec![("a", Some(later)), ("b", Some(steady(52.0, 4)))], began);
        assert!((second.load - 8.0).abs() < 1e-9 && (second.queued - 2.0).abs() < 1e-9, "{second:?}");
        assert_eq!((second.load_now, second.queued_now, second.span), (4.0, 1.0, Duration::from_secs(2)));
        assert_eq!(told.load_time(), Duration::from_secs(3));
    }

    #[test]
    fn clients_that_go_to_a_new_pod_count_once() {
        let (mut told, began) = (Told::default(), Instant::now());
        take(&mut told, 0, vec![("a", Some(steady(10.0, 8)))], began);
        // Half of them have gone half a second ago.
        let mut left = steady(12.0, 8);
        let model = &mut left.models[0];
        (model.queued, model.inflight, model.inflight_sample_seconds) = (0, 4, model.inflight_sample_seconds - 1.5);
        model.queued_sample_seconds -= 0.5;
        let reading = take(&mut told, 2, vec![("a", Some(left)), ("b", Some(steady(0.5, 4)))], began);
        assert_eq!((reading.counted, reading.load, reading.load_now), (2, 8.0, 8.0));
    }

    #[test]
    fn what_is_being_decoded_waits_but_not_in_the_queue() {
        let (mut told, began) = (Told::default(), Instant::now());
        let decoding = |uptime: f64| {
            let mut load = steady(uptime, 8);
            (load.models[0].decoding, load.models[0].decoding_request_seconds) = (3, 3.0 * uptime);
            load
        };
        let first = take(&mut told, 0, vec![("a", Some(decoding(10.0)))], began);
        assert_eq!((first.load, first.queued, first.in_queue), (11.0, 5.0, 2.0));
        let second = take(&mut told, 2, vec![("a", Some(decoding(12.0))), ("b", Some(decoding(0.5)))], began);
        assert_eq!((second.load, second.queued), (11.0 * 1.25, 5.0 * 1.25), "{second:?}");
        assert_eq!(second.in_queue, 2.0 * 1.25, "and what is being decoded is in no queue");
        let one = Load { decoders: 1, ..decoding(10.0) };
        let mut two = Load { decoders: 3, ..one.clone() };
        two.models.push(ModelLoad { name: "tea".to_owned(), decoding: 3, ..ModelLoad::default() });
        let in_queue = |load| take(&mut Told::default(), 0, vec![("a", Some(load))], began).in_queue;
        assert_eq!(in_queue(one), 4.0, "of three two wait for the first");
        assert_eq!(in_queue(two), 2.0 + 1.5, "of six of two models three wait, half of each");
        assert_eq!((second.load_now, second.queued_now), (22.0, 10.0), "{second:?}");
    }

    #[test]
    fn a_pod_counts_as_its_largest_model() {
        let (mut told, began) = (Told::default(), Instant::now());
        let mut load = steady(10.0, 8);
        load.models.push(ModelLoad { name: "lungo".to_owned(), queued: 5, inflight: 1, ..ModelLoad::default() });
        let reading = take(&mut told, 0, vec![("a", Some(load))], began);
        assert_eq!((reading.load, reading.queued), (8.0, 5.0));
    }

    #[test]
    fn json_of_somebody_else_is_no_answer_and_models_of_other_names_are_not_idle() {
        let told: fn(&str) -> bool = |text| serde_json::from_str(text).is_ok_and(|load| is_of_a_pod(&load));
        for text in ["{}", "[]", r#"{"status": "ok"}"#, r#"{"started": "then", "uptime_seconds": 3.0}"#] {
            assert!(!told(text), "{text}");
        }
        assert!(is_of_a_pod(&steady(1.0, 4)));
        let (mut told, began) = (Told::default(), Instant::now());
        take(&mut told, 0, vec![("a", Some(steady(10.0, 8)))], began);
        let mut renamed = steady(12.0, 8);
        renamed.models[0].name = "lungo".to_owned();
        let reading = take(&mut told, 2, vec![("a", Some(renamed))], began);
        assert_eq!((reading.counted, reading.load), (1, 8.0));
    }

    #[test]
    fn counters_that_begin_anew_make_no_difference() {
        let (mut told, began) = (Told::default(), Instant::now());
        let counted = |started: &str, uptime: f64, total: u64| {
            let mut load = steady(uptime, 4);
            load.started = started.to_owned();
            let model = &mut load.models[0];
            (model.refused_total, model.answered_total, model.within_total) = (total, 10 * total, Some(9 * total));
            model.expired_total = total;
            load
        };
        take(&mut told, 0, vec![("a", Some(counted("one", 100.0, 50)))], began);
        let difference = take(&mut told, 2, vec![("a", Some(counted("one", 102.0, 53)))], began);
        assert_eq!((difference.refused, difference.answers["espresso"]), (3, Share { answered: 33, within: 27 }));
        let anew = take(&mut told, 4, vec![("a", Some(counted("two", 1.0, 2)))], began);
        assert_eq!((anew.refused, anew.answers.len(), anew.load), (0, 0, 4.0));
    }

    #[test]
    fn answers_that_were_counted_by_another_latency_are_not_compared() {
        let (mut told, began) = (Told::default(), Instant::now());
        let counted = |total: u64, within: u64| {
            let mut load = steady(100.0 + total as f64, 4);
            (load.models[0].answered_total, load.models[0].within_total) = (total, Some(within));
            load
        };
        let next = |told: &mut Told, second, millis, total, within| {
            told.counts_by(Some(Duration::from_millis(millis)));
            take(told, second, vec![("a", Some(counted(total, within)))], began).answers
        };
        assert!(next(&mut told, 0, 100, 10, 10).is_empty());
        assert_eq!(next(&mut told, 2, 100, 20, 19)["espresso"], Share { answered: 10, within: 9 });
        assert!(next(&mut told, 4, 50, 30, 5).is_empty(), "19 of them within 100 ms say nothing of 50 ms");
        assert_eq!(next(&mut told, 6, 50, 40, 13)["espresso"], Share { answered: 10, within: 8 });
    }

    #[test]
    fn numbers_beyond_all_measure_do_no_harm() {
        let (mut told, began) = (Told::default(), Instant::now());
        take(&mut told, 0, vec![("a", Some(steady(1.0, 4)))], began);
        let mut absurd = steady(1e300, 4);
        absurd.models[0].load_seconds = 1e19;
        let reading = take(&mut told, 2, vec![("a", Some(absurd))], began);
        assert!(reading.load <= 4.0, "{reading:?}");
        assert_eq!(told.load_time(), Duration::from_secs(86_400));
    }

    #[test]
    fn who_is_silent_counts_as_before_until_that_is_stale_and_who_is_gone_does_not() {
        let (mut told, began) = (Told::default(), Instant::now());
        let mut refusing = steady(10.0, 8);
        refusing.models[0].refused_total = 7;
        take(&mut told, 0, vec![("a", Some(steady(8.0, 8))), ("b", Some(steady(8.0, 4)))], began);
        take(&mut told, 2, vec![("a", Some(refusing)), ("b", Some(steady(10.0, 4)))], began);
        let silent = take(&mut told, 4, vec![("a", None), ("b", Some(steady(12.0, 4)))], began);
        assert_eq!((silent.ready, silent.counted, silent.load, silent.refused), (2, 2, 12.0, 0));
        let stale = take(&mut told, 18, vec![("a", None), ("b", Some(steady(26.0, 4)))], began);
        assert_eq!((stale.ready, stale.counted, stale.load), (2, 1, 4.0));
        let gone = take(&mut told, 20, vec![("b", Some(steady(28.0, 4)))], began);
        assert_eq!((gone.ready, gone.counted, gone.load), (1, 1, 4.0));
    }

    #[test]
    fn a_pod_that_was_silent_makes_no_reading_longer() {
        let (mut told, began) = (Told::default(), Instant::now());
        take(&mut told, 0, vec![("a", Some(steady(8.0, 8))), ("b", Some(steady(8.0, 4)))], began);
        for second in (2..14).step_by(2) {
            let uptime = 8.0 + second as f64;
            take(&mut told, second, vec![("a", None), ("b", Some(steady(uptime, 4)))], began);
        }
        let again = take(&mut told, 14, vec![("a", Some(steady(22.0, 8))), ("b", Some(steady(22.0, 4)))], began);
        assert_eq!((again.counted, again.load, again.span), (2, 12.0, Duration::from_secs(2)));
    }

    #[test]
    fn who_has_been_silent_for_long_is_asked_every_fifth_time() {
        let (mut told, began) = (Told::default(), Instant::now());
        let is_asked = |told: &Told, second| {
            let now = began + Duration::from_secs(second);
            told.silent.get(&life("a")).is_none_or(|silence| silence.is_asked(now, STALE_AFTER))
        };
        let mut asked = Vec::new();
        for second in (0..60).step_by(2) {
            if is_asked(&told, second) {
                asked.push(second);
            }
            take(&mut told, second, vec![("a", None), ("b", Some(steady(8.0 + second as f64, 4)))], began);
        }
        assert_eq!(asked, [0, 2, 4, 6, 8, 10, 12, 14, 20, 30, 40, 50]);
        take(&mut told, 60, vec![("a", Some(steady(1.0, 4)))], began);
        assert!(told.silent.is_empty() && is_asked(&told, 62), "who answers is asked each time");
        take(&mut told, 62, vec![("a", None)], began);
        take(&mut told, 64, vec![], began);
        assert!(told.silent.is_empty(), "who is gone is forgotten");
    }
}
