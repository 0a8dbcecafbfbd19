//! From jobs to the input of a run, and from its outputs to the answer of each job.

use std::time::Duration;

use super::{Answer, JobError, JobOutput, Reply};
use crate::{observe::span::Span, session::Stacked, tensor::Tensor};

/// What a job needs on its way back.
pub(super) struct Way {
    pub(super) samples: usize,
    pub(super) queue_time: Duration,
    /// The span of its request, where it is traced.
    pub(super) span: Option<Span>,
}

/// The run that answers.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) time: Duration,
    /// Its span, where any of its jobs is traced.
    pub(super) batch: Option<Span>,
}

/// Lays the jobs' rows behind one another, input by input.
///
/// # Shapes
/// Jobs of `[n1, …rest]` and `[n2, …rest]` become `[n1 + n2, …rest]`; a lone job keeps its shape.
pub(super) fn stack<'a>(jobs: &[&'a [Tensor]]) -> Vec<Stacked<'a>> {
    let Some(first) = jobs.first() else { return Vec::new() };
    let one = |input: usize| {
        let head = &first[input];
        let mut shape = head.shape().to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = jobs.iter().map(|job| job[input].shape().first().copied().unwrap_or(1)).sum();
        }
        let pieces = jobs.iter().flat_map(|job| job[input].data().pieces());
        Stacked { element: head.element(), shape, parts: pieces.map(|piece| &piece[..]).collect() }
    };
    (0..first.len()).map(one).collect()
}

/// Whether outputs can be given back row by row to jobs that shared a run.
///
/// # Errors
/// [`JobError::Failed`] where an output has another number of rows than there were samples.
pub(super) fn check_rows(outputs: Vec<Tensor>, samples: usize) -> Result<Vec<Tensor>, JobError> {
    match outputs.iter().find(|output| output.shape().first() != Some(&samples)) {
        Some(output) => Err(JobError::Failed(format!(
            "the model answered {samples} samples with an output of shape {:?}",
            output.shape()
        ))),
        None => Ok(outputs),
    }
}

/// An answer, and who waits for it.
pub(super) type Addressed = (Reply, Answer);

/// Gives each job its own rows; where there is but one job, everything is its own.
pub(super) fn address(
    replies: Vec<Reply>,
    ways: &[Way],
    run: Run,
    result: &Result<Vec<Tensor>, JobError>,
) -> Vec<Addressed> {
    let alone = replies.len() == 1;
    let batch_samples = ways.iter().map(|way| way.samples).sum();
    let mut row = 0;
    let addressed = |(reply, way): (Reply, &Way)| {
        let own = |output: &Tensor| if alone { output.clone() } else { output.rows(row, way.samples) };
        let answer: Answer = match result {
            Ok(outputs) => Ok(JobOutput {
                outputs: outputs.iter().map(own).collect(),
                queue_time: way.queue_time,
                run_time: run.time,
                batch_samples,
                batch: run.batch,
            }),
            Err(error) => Err(error.clone()),
        };
        row += way.samples;
        (reply, answer)
    };
    replies.into_iter().zip(ways).map(addressed).collect()
}
