//! From jobs to the input of a run, and from its outputs to the answer of each job.

use std::{sync::Arc, time::Duration};

use super::{Answer, JobError, JobOutput, Reply};
use crate::{
    observe::{progress::Progress, span::Span},
    session::Stacked,
    tensor::Tensor,
};

/// What a job needs on its way back.
pub(super) struct Way {
    pub(super) samples: usize,
    /// Length of its longest sample.
    pub(super) length: usize,
    pub(super) queue_time: Duration,
    /// The span of its request, where it is traced.
    pub(super) span: Option<Span>,
    /// How far its request has come.
    pub(super) progress: Arc<Progress>,
}

/// The run that answers.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) time: Duration,
    /// Rows of it that are nobody's.
    pub(super) padding: usize,
}

/// Lays the jobs' rows behind one another, input by input, and `padding` copies of the last one behind them: values that the
/// model can take, and that change no scale which it may find out for a whole batch.
///
/// # Shapes
/// Jobs of `[n1, …rest]` and `[n2, …rest]` become `[n1 + n2 + padding, …rest]`; a lone job that is not padded keeps its shape.
pub(super) fn stack<'a>(jobs: &[&'a [Tensor]], padding: usize) -> Vec<Stacked<'a>> {
    let (Some(first), Some(last)) = (jobs.first(), jobs.last()) else { return Vec::new() };
    let one = |input: usize| {
        let head = &first[input];
        let mut shape = head.shape().to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = jobs.iter().map(|job| job[input].shape().first().copied().unwrap_or(1)).sum::<usize>() + padding;
        }
        let pieces = jobs.iter().flat_map(|job| job[input].data().pieces()).map(|piece| &piece[..]);
        let padding = std::iter::repeat_n(last_row(&last[input]), padding).flatten();
        let parts = pieces.chain(padding).collect();
        Stacked { element: head.element(), shape, parts }
    };
    (0..first.len()).map(one).collect()
}

/// The bytes of a tensor's last row: one piece of them, or several.
fn last_row(tensor: &Tensor) -> Vec<&[u8]> {
    let rows = tensor.shape().first().copied().unwrap_or(1).max(1);
    let mut left = tensor.data().len() / rows;
    let mut row = Vec::new();
    for piece in tensor.data().pieces().iter().rev() {
        let of_row = &piece[piece.len().saturating_sub(left)..];
        left -= of_row.len();
        row.push(of_row);
        if left == 0 {
            break;
        }
    }
    row.reverse();
    row
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

/// Gives each job its own rows; where there is but one job and no padding, everything is its own.
pub(super) fn address(
    replies: Vec<Reply>,
    ways: &[Way],
    run: Run,
    result: &Result<Vec<Tensor>, JobError>,
) -> Vec<Addressed> {
    let alone = replies.len() == 1 && run.padding == 0;
    let mut row = 0;
    let addressed = |(reply, way): (Reply, &Way)| {
        let own = |output: &Tensor| if alone { output.clone() } else { output.rows(row, way.samples) };
        let answer: Answer = match result {
            Ok(outputs) => Ok(JobOutput {
                outputs: outputs.iter().map(own).collect(),
                queue_time: way.queue_time,
                run_time: run.time,
            }),
            Err(error) => Err(error.clone()),
        };
        row += way.samples;
        (reply, answer)
    };
    replies.into_iter().zip(ways).map(addressed).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::tensor::ElementType;

    #[test]
    fn padding_repeats_the_last_row_wherever_the_body_was_cut() {
        let bytes = Bytes::from((0..24).collect::<Vec<u8>>());
        for cuts in [vec![], vec![8], vec![3, 15], vec![13, 14, 22]] {
            let mut ends = cuts.clone();
            ends.push(24);
            let begins = [0].into_iter().chain(cuts.iter().copied());
            let pieces: Vec<Bytes> = begins.zip(ends).map(|(begin, end)| bytes.slice(begin..end)).collect();
            let job = [Tensor::new(ElementType::F32, vec![2, 3], pieces).unwrap()];
            let stacked = stack(&[&job[..]], 2);
            assert_eq!(stacked[0].shape, [4, 3]);
            let expected = [&bytes[..], &bytes[12..], &bytes[12..]].concat();
            assert_eq!(stacked[0].parts.concat(), expected, "cut at {cuts:?}");
        }
    }
}
