//! Who of several operators writes: the holder of a Lease.
//!
//! A Lease is held for [`LEASE_DURATION`] and renewed every [`RENEW_INTERVAL`]. Who could not renew it for
//! [`GIVE_UP_AFTER`] stops writing, three seconds before anybody else may begin. Both are measured on the monotonic clock:
//! others wait until *they* have seen no renewal for the whole duration, so clocks that differ do no harm. Updates name the
//! version they saw, so that of two who try at once one wins.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time};

use crate::causes::chain;

/// How long a Lease is respected without being renewed.
pub const LEASE_DURATION: Duration = Duration::from_secs(10);

/// How often the holder renews it, and how often others look.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(3);

/// Who could not renew for so long writes no more.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(7);

/// A request for the Lease that takes longer has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The permission to write, asked before every write. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leadership {
    began: Instant,
    /// Milliseconds after `began` until which writing is allowed.
    until: Arc<AtomicU64>,
    /// The same from which it has been.
    since: Arc<AtomicU64>,
    leading: watch::Sender<bool>,
}

/// This process may not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another operator leads, or the lease could not be renewed")]
pub struct NotLeading;

impl Default for Leadership {
    fn default() -> Self {
        Self { began: Instant::now(), until: Arc::default(), since: Arc::default(), leading: watch::Sender::new(false) }
    }
}

impl Leadership {
    /// Whether this process may write at this moment.
    ///
    /// # Errors
    /// [`NotLeading`] if it may not.
    pub fn check(&self) -> Result<(), NotLeading> {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if now < self.until.load(Ordering::Acquire) { Ok(()) } else { Err(NotLeading) }
    }

    /// For how long this process has led.
    #[must_use]
    pub fn led_for(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.since.load(Ordering::Acquire)))
    }

    /// Turns true and false with the leadership.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.leading.subscribe()
    }

    /// One that lasts as long as [`GIVE_UP_AFTER`], without a Lease.
    #[cfg(test)]
    pub(crate) fn gained(&self) {
        self.allow_from(Instant::now());
    }

    /// One that has ended.
    #[cfg(test)]
    pub(crate) fn lost(&self) {
        self.forbid();
    }

    fn allow_from(&self, asked: Instant) {
        let asked = asked.saturating_duration_since(self.began);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if self.check().is_err() {
            self.since.store(millis(asked), Ordering::Release);
        }
        self.until.store(millis(asked + GIVE_UP_AFTER), Ordering::Release);
        self.leading.send_if_modified(|leading| !std::mem::replace(leading, true));
    }

    fn forbid(&self) {
        self.until.store(0, Ordering::Release);
        self.leading.send_if_modified(|leading| std::mem::replace(leading, false));
    }
}

/// Takes part in the election.
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    leadership: Leadership,
    /// Who held the Lease when it was last seen to change, at which version, and when that was here.
    seen: Option<(Option<String>, Instant)>,
}

impl Candidate {
    /// A candidate for the Lease of this name.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, leadership: Leadership) -> Self {
        let leases = Api::namespaced(client, namespace);
        Self { leases, name: name.to_owned(), identity: identity.to_owned(), leadership, seen: None }
    }

    /// Takes part until `stop` turns true, then gives the Lease up if it has it.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut ticks = time::interval(RENEW_INTERVAL);
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            self.round().await;
            if self.leadership.check().is_err() {
                // Woken early by a release or an end of the holder's time, not only by the tick.
                ticks.reset_after(self.wait());
            }
        }
        self.release().await;
    }

    /// Time until the Lease that somebody else has may run out, at most one interval.
    fn wait(&self) -> Duration {
        let left = self.seen.as_ref().map(|(_, since)| LEASE_DURATION.saturating_sub(since.elapsed()));
        left.unwrap_or_default().clamp(Duration::from_millis(500), Duration::from_secs(1))
    }

    async fn round(&mut self) {
        let asked = Instant::now();
        match time::timeout(REQUEST_TIMEOUT, self.take_or_renew()).await {
            Ok(Ok(true)) => {
                // A lapse between two rounds is told too: what was not reconciled meanwhile must be.
                if self.leadership.check().is_err() {
                    self.leadership.forbid();
                }
                self.leadership.allow_from(asked);
            }
            Ok(Ok(false)) => self.leadership.forbid(),
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "the lease cannot be renewed"),
            Err(_) => tracing::warn!("the lease cannot be renewed: no answer within {REQUEST_TIMEOUT:?}"),
        }
        // Without an answer the leadership runs out by itself; those who wait for it must be told.
        if self.leadership.check().is_err() {
            self.leadership.forbid();
        }
    }

    /// Whether the Lease is ours now.
    async fn take_or_renew(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.leases.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(None)) };
            return won(self.leases.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder != self.identity && !holder.is_empty() && !self.has_run_out(&lease, &spec) {
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(&spec)));
        won(self.leases.replace(&self.name, &PostParams::default(), &lease).await)
    }

    /// Whether the holder has not renewed it for its whole duration, as seen from here.
    fn has_run_out(&mut self, lease: &Lease, spec: &LeaseSpec) -> bool {
        let version = lease.metadata.resource_version.clone();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => Instant::now(),
        };
        self.seen = Some((version, since));
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        since.elapsed() >= seconds.map_or(LEASE_DURATION, Duration::from_secs)
    }

    /// The Lease as ours, after what it was before.
    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(crate::clock::now());
        let kept = before.filter(|spec| spec.holder_identity.as_deref() == Some(self.identity.as_str()));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: kept.map_or_else(|| Some(now.clone()), |spec| spec.acquire_time.clone()),
            renew_time: Some(now),
            lease_transitions: Some(if kept.is_some() { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }

    /// Lets the next one begin at once.
    async fn release(&self) {
        let led = self.leadership.check().is_ok();
        self.leadership.forbid();
        if !led {
            return;
        }
        let release = async {
            let Some(mut lease) = self.leases.get_opt(&self.name).await? else { return Ok(()) };
            let ours = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&self.identity));
            let Some(spec) = ours else { return Ok(()) };
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            self.leases.replace(&self.name, &PostParams::default(), &lease).await.map(|_| ())
        };
        match time::timeout(REQUEST_TIMEOUT, release).await {
            Ok(Ok(())) => tracing::info!("the lease is released"),
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "the lease cannot be released"),
            Err(_) => tracing::warn!("the lease cannot be released: no answer within {REQUEST_TIMEOUT:?}"),
        }
    }
}

/// Who comes too late has not won, which is no error.
fn won(answer: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match answer {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}
