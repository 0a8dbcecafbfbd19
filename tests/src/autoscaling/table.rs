//! What came out, as a table for people and as JSON for plots.

use serde_json::{Value, json};

use super::{
    Course,
    cases::Case,
    compare::{Outcome, TARGETS, Variation, Who, frontier},
    score::{Ratio, Score},
    traces::Shape,
};

/// The target at which violations, replica-hours and reversals are shown, as a share of what a replica runs at once.
pub const SHOWN_TARGET: f64 = 0.68;

/// Of the two ways to feed it, the better one counts at each share of violations.
const HPA: [Who; 2] = [Who::HpaGauge, Who::HpaAverage];

/// The cases that constants were chosen by, and the others.
const HALVES: [(&str, bool); 2] = [("tuning", false), ("held out", true)];

/// Autoscalers beside each other on the cases of one shape and half.
struct Group<'a> {
    outcomes: &'a [Outcome],
    shape: Shape,
    numbers: Vec<u64>,
}

/// All groups, one half after the other, each with its first cells of a row.
fn groups<'a>(cases: &[Case], outcomes: &'a [Outcome]) -> impl Iterator<Item = (String, Group<'a>)> {
    HALVES.iter().flat_map(|(half, is_held_out)| {
        Shape::ALL.map(|shape| {
            let numbers = cases.iter().filter(|it| (it.shape, it.is_held_out) == (shape, *is_held_out));
            let numbers = numbers.map(|it| it.number).collect();
            (format!("| {} | {half} |", shape.as_str()), Group { outcomes, shape, numbers })
        })
    })
}

impl Group<'_> {
    fn ratios(&self, one: Who, others: &[Who]) -> Vec<Ratio> {
        let of = |who: &[Who], number: u64| frontier(self.outcomes, self.shape, number, who);
        self.numbers.iter().filter_map(|number| Ratio::of(&of(&[one], *number), &of(others, *number))).collect()
    }

    fn at_shown_target(&self, who: Who) -> Score {
        let is_of = |it: &&Outcome| {
            it.shape == self.shape && self.numbers.contains(&it.number) && it.who == who && it.target == SHOWN_TARGET
        };
        self.outcomes.iter().filter(is_of).map(|outcome| outcome.score).sum()
    }
}

/// The geometric mean over cases.
#[must_use]
pub fn mean(ratios: &[Ratio]) -> f64 {
    (ratios.iter().map(|ratio| ratio.mean.ln()).sum::<f64>() / ratios.len() as f64).exp()
}

fn cell(ratios: &[Ratio]) -> String {
    let each: Vec<String> = ratios.iter().map(|ratio| format!("{:.2}", ratio.mean)).collect();
    if ratios.is_empty() { "-".to_owned() } else { format!("{:.2} ({})", mean(ratios), each.join(" ")) }
}

/// Replica-hours of ours ÷ theirs at equal violations, by shape and half.
#[must_use]
pub fn ratios(cases: &[Case], outcomes: &[Outcome]) -> String {
    let mut lines = vec![
        "| load | half | ÷ HPA | ÷ Knative | Operator | HPA | Knative |".to_owned(),
        "|---|---|---|---|---|---|---|".to_owned(),
    ];
    for (name, group) in groups(cases, outcomes) {
        let (hpa, knative) = (cell(&group.ratios(Who::Ours, &HPA)), cell(&group.ratios(Who::Ours, &[Who::Knative])));
        let [ours, theirs, other] = [Who::Ours, Who::HpaAverage, Who::Knative].map(|who| {
            let score = group.at_shown_target(who);
            let (violations, hours) = (100.0 * score.violations(), score.replica_hours);
            format!("{violations:.2} %, {hours:.0} h, {:.1}/h", score.reversals_per_hour())
        });
        lines.push(format!("{name} {hpa} | {knative} | {ours} | {theirs} | {other} |"));
    }
    lines.join("\n")
}

/// From which share of violations on autoscalers are compared, and the ratio at the share where it is worst, by case.
#[must_use]
pub fn shares(cases: &[Case], outcomes: &[Outcome]) -> String {
    let header = "| load | half | from (HPA) | worst ÷ HPA | from (Knative) | worst ÷ Knative |";
    let mut lines = vec![header.to_owned(), "|---|---|---|---|---|---|".to_owned()];
    for (name, group) in groups(cases, outcomes) {
        let [hpa, knative] = [&HPA[..], &[Who::Knative]].map(|others| {
            let ratios = group.ratios(Who::Ours, others);
            let from: Vec<String> = ratios.iter().map(|it| format!("{:.2} %", 100.0 * it.from)).collect();
            let worst: Vec<String> = ratios.iter().map(|it| format!("{:.2}", it.worst)).collect();
            format!("{} | {}", from.join(" "), worst.join(" "))
        });
        lines.push(format!("{name} {hpa} | {knative} |"));
    }
    lines.join("\n")
}

/// Replica-hours of one who knows the load beforehand ÷ those of each at equal violations.
#[must_use]
pub fn foreseen(cases: &[Case], outcomes: &[Outcome]) -> String {
    let header = "| load | half | foresight ÷ HPA | ÷ Knative | ÷ Operator |";
    let mut lines = vec![header.to_owned(), "|---|---|---|---|---|".to_owned()];
    for (name, group) in groups(cases, outcomes) {
        let cells = [&HPA[..], &[Who::Knative], &[Who::Ours]].map(|who| cell(&group.ratios(Who::Foresight, who)));
        lines.push(format!("{name} {} |", cells.join(" | ")));
    }
    lines.join("\n")
}

/// Reversals an hour of ours on steady noise, by target and case.
#[must_use]
pub fn steadiness(cases: &[Case], outcomes: &[Outcome]) -> String {
    let steady = cases.iter().filter(|it| it.shape == Shape::Steady);
    let numbers: Vec<u64> = steady.map(|it| it.number).collect();
    let name = |number: &u64| format!("{} {}", if number % 2 == 1 { "held out" } else { "tuning" }, number / 2 + 1);
    let names: Vec<String> = numbers.iter().map(name).collect();
    let mut lines = vec![format!("| target | {} |", names.join(" | ")), "|---".repeat(numbers.len() + 1) + "|"];
    for target in TARGETS {
        let of = |number: &u64| {
            let is_of = |it: &&Outcome| {
                (it.shape, it.number, it.who) == (Shape::Steady, *number, Who::Ours) && it.target == target
            };
            let found: Score = outcomes.iter().filter(is_of).map(|outcome| outcome.score).sum();
            format!("{:.1}", found.reversals_per_hour())
        };
        lines.push(format!("| {target} | {} |", numbers.iter().map(of).collect::<Vec<_>>().join(" | ")));
    }
    lines.join("\n")
}

/// What other constants would have cost: replica-hours ÷ those of the defaults at equal violations, and reversals.
#[must_use]
pub fn variations(outcomes: &[Outcome], varied: &[(Variation, Vec<Outcome>)]) -> String {
    let shapes = Shape::ALL.map(Shape::as_str).join(" | ");
    let mut lines = vec![format!("| instead | {shapes} |"), "|---".repeat(Shape::ALL.len() + 1) + "|"];
    for (variation, found) in varied {
        let cells = Shape::ALL.map(|shape| {
            let mut numbers: Vec<u64> = found.iter().filter(|it| it.shape == shape).map(|it| it.number).collect();
            numbers.sort_unstable();
            numbers.dedup();
            let of = |outcomes: &[Outcome], number: u64| frontier(outcomes, shape, number, &[Who::Ours]);
            let ratios = numbers.iter().filter_map(|it| Ratio::of(&of(found, *it), &of(outcomes, *it)));
            let ratios: Vec<Ratio> = ratios.collect();
            let score = Group { outcomes: found, shape, numbers }.at_shown_target(Who::Ours);
            format!("{:.2}, {:.1}/h", mean(&ratios), score.reversals_per_hour())
        });
        lines.push(format!("| {} | {} |", variation.name, cells.join(" | ")));
    }
    lines.join("\n")
}

/// What is drawn of a shape: its load over time, and what became of it with each.
pub type ShapeCourses = (Shape, Vec<f64>, Vec<(Who, Course)>);

/// All that plots need.
#[must_use]
pub fn json(cases: &[Case], outcomes: &[Outcome], courses: &[ShapeCourses]) -> Value {
    let of_case = |case: &Case| {
        let found = outcomes.iter().filter(|it| (it.shape, it.number) == (case.shape, case.number));
        let rows: Vec<Value> = found.map(row).collect();
        json!({
            "shape": case.shape.as_str(), "number": case.number, "held_out": case.is_held_out, "hours": case.hours(),
            "outcomes": rows,
        })
    };
    let courses: serde_json::Map<String, Value> = courses
        .iter()
        .map(|(shape, levels, courses)| {
            let mut lines = serde_json::Map::new();
            lines.insert("load".to_owned(), json!(levels.iter().map(|it| rounded(*it, 2)).collect::<Vec<_>>()));
            for (who, course) in courses {
                lines.insert(who.as_str().to_owned(), json!(course.wanted));
            }
            (shape.as_str().to_owned(), Value::Object(lines))
        })
        .collect();
    json!({ "cases": cases.iter().map(of_case).collect::<Vec<_>>(), "courses": courses })
}

fn row(outcome: &Outcome) -> Value {
    let Score { requests, refused, late, replica_hours, changes, reversals, hours: _ } = outcome.score;
    json!({
        "who": outcome.who.as_str(), "target": outcome.target, "requests": requests, "refused": refused, "late": late,
        "replica_hours": rounded(replica_hours, 3), "changes": changes, "reversals": reversals,
    })
}

fn rounded(number: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (number * factor).round() / factor
}
