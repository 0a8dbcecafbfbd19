//! A consumer of events: behind a bounded channel, on a thread of its own, cut off while it fails.

use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Event, redact::Redactor};
use crate::threads;

/// Events that may wait for a consumer. What comes when there are so many is dropped for it, and counted.
const CAPACITY: usize = 4096;

/// Events that a consumer gets at a time at most.
const AT_A_TIME: usize = 256;

/// Failures in a row after which a consumer is cut off.
const FAILURES: u32 = 3;

/// A consumer that has had the same events for so long while others wait for it is cut off.
const SLOW: Duration = Duration::from_secs(5);

/// Waits before a consumer that was cut off is tried again: doubled each time, from the first to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What takes events. It may block and it may panic.
pub trait Consumer: Send {
    /// Takes all of them or none.
    ///
    /// # Errors
    /// Why it took none.
    fn consume(&mut self, events: &[Arc<Event>]) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// What became of the events that were meant for a consumer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// It took them.
    pub consumed: u64,
    /// Its channel was full.
    pub full: u64,
    /// It was cut off.
    pub open: u64,
    /// It failed.
    pub failed: u64,
    /// Whether it is cut off, or on trial after it was.
    pub is_open: bool,
}

/// The end of the channel that events are put into.
pub struct Tap {
    name: &'static str,
    state: Arc<State>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tap").field(&self.name).finish()
    }
}

/// Whether events reach a consumer.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Breaker {
    /// They do.
    Closed,
    /// They do, to see whether it works again; until it does it counts as cut off.
    OnTrial,
    /// They are dropped.
    Open,
}

/// What is on its way to a consumer.
#[derive(Default)]
struct Waiting {
    events: VecDeque<Arc<Event>>,
    closed: bool,
}

/// What the two ends know of each other.
struct State {
    began: Instant,
    /// Milliseconds from `began` to when it got what it has in hand, and one more; 0 where it has nothing.
    busy_since: AtomicU64,
    /// A [`Breaker`].
    breaker: AtomicU8,
    waiting: Mutex<Waiting>,
    /// The first of several that wait, a whole helping of them, or the end.
    arrived: Condvar,
    consumed: AtomicU64,
    full: AtomicU64,
    dropped_open: AtomicU64,
    failed: AtomicU64,
}

impl State {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            busy_since: AtomicU64::default(),
            breaker: AtomicU8::new(Breaker::Closed as u8),
            waiting: Mutex::default(),
            arrived: Condvar::new(),
            consumed: AtomicU64::default(),
            full: AtomicU64::default(),
            dropped_open: AtomicU64::default(),
            failed: AtomicU64::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, breaker: Breaker) -> bool {
        self.breaker.load(Ordering::Relaxed) == breaker as u8
    }

    /// Sets it; whether it was something else.
    fn set(&self, breaker: Breaker) -> bool {
        self.breaker.swap(breaker as u8, Ordering::Relaxed) != breaker as u8
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn is_slow(&self) -> bool {
        let since = self.busy_since.load(Ordering::Relaxed);
        since != 0 && u128::from(self.now().saturating_sub(since)) > SLOW.as_millis()
    }
}

impl Tap {
    /// Starts the consumer's thread.
    ///
    /// # Errors
    /// What the system said where it could not.
    pub fn start(
        name: &'static str,
        gather: Duration,
        redactor: Arc<Redactor>,
        consumer: Box<dyn Consumer>,
    ) -> std::io::Result<Self> {
        let state = Arc::new(State::new());
        let side = Side { name, gather, redactor, state: Arc::clone(&state) };
        let thread = std::thread::Builder::new().name(format!("events/{name}")).spawn(move || side.work(consumer))?;
        Ok(Self { name, state, thread: Mutex::new(Some(thread)) })
    }

    /// The consumer's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Gives the consumer an event, or drops and counts it. Never waits.
    pub fn offer(&self, event: Arc<Event>) {
        let count = |counter: &AtomicU64| _ = counter.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.state.waiting();
        if waiting.closed {
            return;
        }
        if self.state.is(Breaker::Open) {
            return count(&self.state.dropped_open);
        }
        let is_taken = waiting.events.len() < CAPACITY;
        let mut is_awaited = false;
        if is_taken {
            waiting.events.push_back(event);
            // Each time costs a switch of threads: not for every event.
            is_awaited = matches!(waiting.events.len(), 1 | AT_A_TIME);
        } else {
            count(&self.state.full);
        }
        // Under the lock, and with something in the queue: whatever the consumer's thread does meanwhile, it will come for that,
        // and close the breaker again where the consumer works.
        let is_cut_off = self.state.is_slow() && self.state.set(Breaker::Open);
        drop(waiting);
        if is_awaited {
            self.state.arrived.notify_one();
        }
        if is_cut_off {
            tracing::warn!(consumer = self.name, "a consumer of events does not move and is cut off");
        }
    }

    /// What became of its events.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            consumed: count(&self.state.consumed),
            full: count(&self.state.full),
            open: count(&self.state.dropped_open),
            failed: count(&self.state.failed),
            is_open: !self.state.is(Breaker::Closed),
        }
    }

    /// Whether nothing is on its way to the consumer, or in its hands.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let waiting = self.state.waiting();
        waiting.events.is_empty() && self.state.busy_since.load(Ordering::Relaxed) == 0
    }

    /// Takes no more events.
    pub fn close(&self) {
        self.state.waiting().closed = true;
        self.state.arrived.notify_one();
    }

    /// Waits until then at most for the consumer of a closed one to be done with what it has.
    pub fn finish(&self, end: Instant) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        while thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The consumer's end of the channel.
struct Side {
    name: &'static str,
    gather: Duration,
    redactor: Arc<Redactor>,
    state: Arc<State>,
}

impl Side {
    fn work(self, mut consumer: Box<dyn Consumer>) {
        threads::tell_behind_the_loop();
        let (mut failures, mut wait) = (0, FIRST_WAIT);
        while let Some(mut events) = self.next() {
            let count = events.len() as u64;
            let result = catch_unwind(AssertUnwindSafe(|| {
                // Here and not where they are emitted, which is in the way of a request. Others may have the same event as it was.
                events.iter_mut().for_each(|event| Arc::make_mut(event).clean(&self.redactor));
                consumer.consume(&events)
            }));
            self.state.busy_since.store(0, Ordering::Relaxed);
            let error = match result {
                Ok(Ok(())) => {
                    self.state.consumed.fetch_add(count, Ordering::Relaxed);
                    if self.state.set(Breaker::Closed) {
                        tracing::info!(consumer = self.name, "a consumer of events works again");
                    }
                    (failures, wait) = (0, FIRST_WAIT);
                    continue;
                }
                Ok(Err(error)) => chain(&*error),
                Err(_) => "it panicked".to_owned(),
            };
            self.state.failed.fetch_add(count, Ordering::Relaxed);
            failures += 1;
            // One that was cut off as slow gets no more events: nobody but this thread lets it try again.
            if failures < FAILURES && !self.state.is(Breaker::Open) {
                tracing::warn!(consumer = self.name, error, events = count, "a consumer of events failed");
                continue;
            }
            self.state.set(Breaker::Open);
            let seconds = wait.as_secs();
            tracing::warn!(consumer = self.name, error, retry_in_seconds = seconds, "a consumer of events is cut off");
            self.drop_for(wait);
            wait = (wait * 2).min(LONGEST_WAIT);
            self.state.set(Breaker::OnTrial);
        }
    }

    /// The next events, as many as come soon after one another; `None` at the end.
    fn next(&self) -> Option<Vec<Arc<Event>>> {
        let State { arrived, .. } = &*self.state;
        let mut waiting = self.state.waiting();
        while waiting.events.is_empty() && !waiting.closed {
            waiting = arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if !self.gather.is_zero() {
            let few = |waiting: &mut Waiting| waiting.events.len() < AT_A_TIME && !waiting.closed;
            let gathered = arrived.wait_timeout_while(waiting, self.gather, few);
            waiting = gathered.unwrap_or_else(PoisonError::into_inner).0;
        }
        let count = waiting.events.len().min(AT_A_TIME);
        if count == 0 {
            return None;
        }
        // Under the lock, so that they are always on their way or in hand.
        self.state.busy_since.store(self.state.now(), Ordering::Relaxed);
        Some(waiting.events.drain(..count).collect())
    }

    /// Drops what has come and what comes for that long, or until the end.
    fn drop_for(&self, time: Duration) {
        let mut waiting = self.state.waiting();
        let dropped = waiting.events.drain(..).count() as u64;
        self.state.dropped_open.fetch_add(dropped, Ordering::Relaxed);
        let _ = self.state.arrived.wait_timeout_while(waiting, time, |waiting| !waiting.closed);
    }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    crate::termination::error_chain(error)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;
    use crate::observe::events::{Detail, Kind};

    /// No state that a test waits for takes longer.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Does with its events what it is told to.
    struct Told(Orders);

    impl Consumer for Told {
        fn consume(&mut self, _events: &[Arc<Event>]) -> Result<(), Box<dyn Error + Send + Sync>> {
            let orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Ok((*orders)()?)
        }
    }

    type Order = Box<dyn Fn() -> Result<(), String> + Send>;
    type Orders = Arc<Mutex<Order>>;

    fn tap(orders: impl Fn() -> Result<(), String> + Send + 'static) -> (Tap, Orders) {
        let orders: Orders = Arc::new(Mutex::new(Box::new(orders)));
        let redactor = Arc::new(Redactor::new(&[]).unwrap());
        (Tap::start("test", Duration::ZERO, redactor, Box::new(Told(Arc::clone(&orders)))).unwrap(), orders)
    }

    fn end(tap: &Tap) {
        tap.close();
        tap.finish(Instant::now() + PATIENCE);
    }

    fn event() -> Arc<Event> {
        let detail = Detail::Overload { refused: 1, lasted: Duration::ZERO };
        Arc::new(Event { kind: Kind::OverloadBegun, at: crate::clock::now(), model: "m".into(), detail })
    }

    /// Offers events, one after the other, until something holds; how many they were.
    fn offer_until(tap: &Tap, holds: impl Fn(Counts) -> bool) -> u64 {
        offer_each(Duration::from_millis(1), tap, holds)
    }

    /// The same, so few that they fill nothing.
    fn offer_few_until_open(tap: &Tap) -> u64 {
        offer_each(Duration::from_millis(100), tap, |counts| counts.is_open)
    }

    fn offer_each(pause: Duration, tap: &Tap, holds: impl Fn(Counts) -> bool) -> u64 {
        let (began, mut offered) = (Instant::now(), 0);
        while !holds(tap.counts()) {
            assert!(began.elapsed() < PATIENCE, "{:?}", tap.counts());
            tap.offer(event());
            offered += 1;
            std::thread::sleep(pause);
        }
        offered
    }

    fn all(counts: Counts) -> u64 {
        counts.consumed + counts.full + counts.open + counts.failed
    }

    #[test]
    fn one_that_fails_or_panics_is_cut_off_and_comes_back_and_every_event_is_counted() {
        for panics in [false, true] {
            let (tap, orders) = tap(move || if panics { panic!("as told") } else { Err("as told".to_owned()) });
            let mut offered = offer_until(&tap, |counts| counts.is_open);
            assert!(tap.counts().failed >= 3, "{:?}", tap.counts());
            *orders.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(|| Ok(()));
            offered += offer_until(&tap, |counts| counts.consumed > 0 && !counts.is_open);
            end(&tap);
            let counts = tap.counts();
            assert_eq!(all(counts), offered, "{counts:?}");
            assert!(counts.open > 0, "{counts:?}");
        }
    }

    #[test]
    fn one_that_blocks_is_cut_off_without_anyone_waiting_and_comes_back() {
        let (let_go, gate): (SyncSender<()>, Receiver<()>) = sync_channel(1);
        let gate = Mutex::new(gate);
        // Blocks until somebody lets go, and never again afterwards.
        let (tap, _) = tap(move || {
            let _ = gate.lock().unwrap_or_else(PoisonError::into_inner).recv();
            Ok(())
        });
        let mut offered = 0;
        while tap.counts().full == 0 {
            tap.offer(event());
            offered += 1;
        }
        assert!(offered <= CAPACITY as u64 + AT_A_TIME as u64 + 1, "{offered}");
        offered += offer_until(&tap, |counts| counts.is_open);
        drop(let_go);
        offered += offer_until(&tap, |counts| !counts.is_open);
        end(&tap);
        let counts = tap.counts();
        assert_eq!(all(counts), offered, "{counts:?}");
        assert!(counts.consumed >= CAPACITY as u64 && counts.failed == 0, "{counts:?}");
    }

    #[test]
    fn one_that_blocks_is_cut_off_though_few_events_come() {
        let (let_go, gate): (SyncSender<()>, Receiver<()>) = sync_channel(1);
        let gate = Mutex::new(gate);
        let (tap, _) = tap(move || {
            let _ = gate.lock().unwrap_or_else(PoisonError::into_inner).recv();
            Ok(())
        });
        let began = Instant::now();
        let offered = offer_few_until_open(&tap);
        assert!(began.elapsed() >= SLOW && offered < CAPACITY as u64 && tap.counts().full == 0, "{:?}", tap.counts());
        drop(let_go);
        // What waits is taken without another event, and that closes the breaker.
        while tap.counts().is_open {
            assert!(began.elapsed() < PATIENCE, "{:?}", tap.counts());
            std::thread::sleep(Duration::from_millis(1));
        }
        end(&tap);
        assert_eq!(all(tap.counts()), offered, "{:?}", tap.counts());
    }

    #[test]
    fn one_that_blocks_and_fails_then_comes_back_though_few_events_come() {
        let (let_go, gate): (SyncSender<()>, Receiver<()>) = sync_channel(1);
        let gate = Mutex::new(gate);
        let (tap, orders) = tap(move || {
            let _ = gate.lock().unwrap_or_else(PoisonError::into_inner).recv();
            Err("too late".to_owned())
        });
        offer_few_until_open(&tap);
        drop(let_go);
        *orders.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(|| Ok(()));
        offer_until(&tap, |counts| counts.consumed > 0 && !counts.is_open);
        end(&tap);
    }

    #[test]
    fn what_is_there_at_the_end_is_taken() {
        let (tap, _) = tap(|| Ok(()));
        (0..100).for_each(|_| tap.offer(event()));
        end(&tap);
        assert_eq!(tap.counts(), Counts { consumed: 100, ..Counts::default() });
        assert!(tap.is_idle());
    }
}
