//! From scores to predictions.

use serde::Serialize;

use crate::tensor::Tensor;

/// One class and how sure the model is of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Number of the class, from 0.
    pub class_id: usize,
    /// Its name; its number where there are no names.
    pub label: String,
    /// 0 to 1.
    pub confidence: f32,
}

/// How one model's scores are read. Built only from labels that fit its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    /// Names in class order; empty where there are none.
    pub labels: Vec<String>,
    /// Predictions in an answer.
    pub top_k: usize,
    /// Whether the scores are still to become probabilities.
    pub softmax: bool,
}

impl Classes {
    /// The most likely classes of one sample, most likely first; `None` where a score is no number, or one that is shown is not
    /// finite.
    ///
    /// # Shapes
    /// `scores` is one row of the model's output, `[1, classes]` or with further dimensions of 1.
    #[must_use]
    pub fn predictions(&self, scores: &Tensor) -> Option<Vec<Prediction>> {
        let mut scores = scores.to_f32();
        if scores.iter().any(|score| score.is_nan()) {
            return None;
        }
        if self.softmax {
            softmax(&mut scores);
        }
        let mut order: Vec<usize> = (0..scores.len()).collect();
        // Of equal scores the smaller class number comes first, so that an answer can be repeated.
        let by_score = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
        let top = self.top_k.min(order.len());
        if top > 0 && top < order.len() {
            order.select_nth_unstable_by(top - 1, by_score);
            order.truncate(top);
        }
        order.sort_by(by_score);
        let shown =
            |class: usize| Some(scores[class]).filter(|score| score.is_finite()).map(|it| self.prediction(class, it));
        order.into_iter().map(shown).collect()
    }

    fn prediction(&self, class_id: usize, confidence: f32) -> Prediction {
        let label = self.labels.get(class_id).cloned().unwrap_or_else(|| class_id.to_string());
        Prediction { class_id, label, confidence }
    }
}

/// Turns scores into probabilities: the exponential of each, divided by their sum. The largest score is subtracted
/// first, so that no exponential overflows.
fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - largest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// Whether scores look like probabilities already: none below 0, and 1 together.
#[must_use]
pub fn are_probabilities(scores: &[f32]) -> bool {
    const TOLERANCE: f32 = 0.01;
    scores.iter().all(|score| *score >= 0.0) && (scores.iter().sum::<f32>() - 1.0).abs() < TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(top_k: usize, softmax: bool) -> Classes {
        Classes { labels: ["cup", "tripod", "cat"].map(str::to_owned).to_vec(), top_k, softmax }
    }

    fn scores(numbers: &[f32]) -> Tensor {
        Tensor::from_f32(vec![1, numbers.len()], numbers).unwrap()
    }

    #[test]
    fn the_most_likely_comes_first_and_equal_ones_by_number() {
        let predictions = classes(2, false).predictions(&scores(&[0.25, 0.5, 0.25])).unwrap();
        let seen: Vec<_> = predictions.iter().map(|p| (p.class_id, p.label.as_str(), p.confidence)).collect();
        assert_eq!(seen, [(1, "tripod", 0.5), (0, "cup", 0.25)]);
    }

    #[test]
    fn more_are_asked_for_than_there_are_classes() {
        assert_eq!(classes(9, false).predictions(&scores(&[0.1, 0.2, 0.7])).unwrap().len(), 3);
        let unnamed = Classes { labels: Vec::new(), top_k: 1, softmax: false };
        assert_eq!(unnamed.predictions(&scores(&[0.1, 0.9])).unwrap()[0].label, "1");
    }

    #[test]
    fn softmax_of_large_scores_stays_finite_and_adds_up_to_one() {
        let predictions = classes(3, true).predictions(&scores(&[1000.0, 999.0, -1000.0])).unwrap();
        let sum: f32 = predictions.iter().map(|p| p.confidence).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert!((predictions[0].confidence - 0.731_058_6).abs() < 1e-5, "{predictions:?}");
    }

    #[test]
    fn what_is_no_number_is_no_prediction() {
        let top = |numbers: &[f32], softmax| classes(2, softmax).predictions(&scores(numbers)).map(|top| top.len());
        assert_eq!(top(&[0.1, f32::NAN, 0.9], false), None);
        assert_eq!(top(&[0.1, f32::INFINITY, 0.9], false), None);
        assert_eq!(top(&[f32::INFINITY, 1.0, 0.9], true), None);
        // As masked classes have it.
        assert_eq!(top(&[0.1, f32::NEG_INFINITY, 0.9], false), Some(2));
        assert_eq!(top(&[0.1, f32::NEG_INFINITY, 0.9], true), Some(2));
    }

    #[test]
    fn probabilities_are_told_from_logits() {
        assert!(are_probabilities(&[0.2, 0.3, 0.5]));
        assert!(!are_probabilities(&[2.0, -1.0, 0.0]));
        assert!(!are_probabilities(&[0.2, 0.2]));
    }
}
