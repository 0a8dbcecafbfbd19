//! Which of the waiting samples share runs, and what it costs that not all of them do.

use std::time::Duration;

use super::Shape;

/// Samples that wait, by their shape: only those of one shape share a run.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: Vec<Group>,
    /// What they cost beyond their shares of full runs.
    beyond: Duration,
}

#[derive(Debug)]
struct Group {
    shape: Shape,
    samples: usize,
    /// Length of the sample that came last.
    length: usize,
    /// What its last run, which is not full, takes beyond the shares that its samples have of a full one.
    beyond: Duration,
}

impl Groups {
    /// What they cost beyond their shares of full runs. Where all share one shape, none: more may come before the last of their runs
    /// begins, and who comes now is in it.
    pub(super) fn beyond(&self) -> Duration {
        self.beyond
    }

    /// So many samples more.
    pub(super) fn enter(
        &mut self,
        shape: &Shape,
        samples: usize,
        length: usize,
        price: impl FnMut(usize, usize) -> Duration,
    ) {
        match self.groups.iter_mut().find(|group| group.shape == *shape) {
            Some(group) => (group.samples, group.length) = (group.samples + samples, length),
            None => self.groups.push(Group { shape: shape.clone(), samples, length, beyond: Duration::ZERO }),
        }
        self.changed(shape, price);
    }

    /// So many samples fewer.
    pub(super) fn leave(&mut self, shape: &Shape, samples: usize, price: impl FnMut(usize, usize) -> Duration) {
        let Some(at) = self.groups.iter().position(|group| group.shape == *shape) else { return };
        self.groups[at].samples = self.groups[at].samples.saturating_sub(samples);
        if self.groups[at].samples == 0 {
            self.groups.swap_remove(at);
        }
        self.changed(shape, price);
    }

    /// None are left.
    pub(super) fn empty(&mut self) {
        *self = Self::default();
    }

    /// A group has changed: `price` says what so many samples of a length cost beyond their shares.
    fn changed(&mut self, shape: &Shape, mut price: impl FnMut(usize, usize) -> Duration) {
        self.beyond = Duration::ZERO;
        // A group by itself has no price, and gets it when another one comes.
        if self.groups.len() < 2 {
            return;
        }
        let is_second = self.groups.len() == 2;
        let (mut sum, mut largest) = (Duration::ZERO, Duration::ZERO);
        for group in &mut self.groups {
            if is_second || group.shape == *shape {
                group.beyond = price(group.samples, group.length);
            }
            sum += group.beyond;
            largest = largest.max(group.beyond);
        }
        self.beyond = sum - largest;
    }
}
