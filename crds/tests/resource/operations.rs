//! The page that explains each reason to the people who run Ortolan.

use ortolan_crds::resource::conditions::SUMMED_UP;

const PAGE: &str = include_str!("../../../docs/operations.md");

#[test]
fn every_reason_has_a_paragraph_under_its_condition_and_no_other_has() {
    let known: Vec<_> = SUMMED_UP
        .iter()
        .flat_map(|(condition, reasons)| {
            reasons.iter().map(move |reason| ((*condition).to_owned(), (*reason).to_owned()))
        })
        .collect();
    assert_eq!(explained(), known);
}

/// Condition and reason of each `####` heading that has a text, in their order.
fn explained() -> Vec<(String, String)> {
    let mut condition = "";
    let mut found = Vec::new();
    let lines: Vec<&str> = PAGE.lines().filter(|line| !line.is_empty()).collect();
    for pair in lines.windows(2) {
        let [line, next] = pair else { continue };
        if let Some(heading) = line.strip_prefix("### ") {
            condition = heading;
        } else if let Some(reason) = line.strip_prefix("#### ") {
            assert!(!next.starts_with('#'), "{reason} is not explained");
            found.push((condition.to_owned(), reason.to_owned()));
        }
    }
    found
}
