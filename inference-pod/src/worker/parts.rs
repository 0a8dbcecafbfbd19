//! In which parts the jobs of a failed batch run again.

use std::iter;

/// In which parts the jobs of a failed batch run again: in halves, and each half that fails in halves again, which finds one bad job
/// in twice the logarithm of their number. Where many are bad that would take more runs than there are jobs, so after some failures
/// all that are left run one by one.
pub(super) struct Parts {
    /// Their sizes, the next one last.
    sizes: Vec<usize>,
    /// So many may fail before the others run one by one.
    patience: usize,
}

impl Parts {
    pub(super) fn of_failed(jobs: usize) -> Self {
        let mut parts = Self { sizes: Vec::new(), patience: jobs.ilog2().max(2) as usize * 2 };
        parts.failed(jobs);
        parts
    }

    /// A part of so many has failed.
    pub(super) fn failed(&mut self, jobs: usize) {
        self.sizes.extend([jobs - jobs / 2, jobs / 2]);
        self.patience = self.patience.saturating_sub(1);
    }

    pub(super) fn next(&mut self) -> Option<usize> {
        let size = self.sizes.pop()?;
        if self.patience > 0 || size == 1 {
            return Some(size);
        }
        self.sizes.extend(iter::repeat_n(1, size - 1));
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_every_part_fails_jobs_run_one_by_one_before_long() {
        let (mut parts, mut failures, mut left) = (Parts::of_failed(1024), 1, 1024);
        while let Some(size) = parts.next() {
            if size > 1 {
                parts.failed(size);
                failures += 1;
            } else {
                left -= 1;
            }
        }
        assert_eq!((left, failures), (0, 20));
    }
}
