//! Every metric that is named somewhere is one that a server or the operator has, or that a rule records.

use std::collections::BTreeSet;
use std::fs;

use crate::{Query, autoscaling, dashboards, page, repository, rules};

/// What a target label is called that the pods' labels become.
const LABELS: &str = "ortolan_dev_";

#[test]
fn each_metric_that_is_named_exists() {
    let recorded: BTreeSet<_> = rules::all().into_iter().filter_map(|rule| rule.record).collect();
    let exported = exported();
    let queries = [rules::queries(), dashboards::queries(), page::queries(), autoscaling::queries()].concat();
    let mut unknown = Vec::new();
    for Query { place, text } in queries {
        for name in metrics(&text) {
            let is_known = if name.contains(':') {
                recorded.contains(&name)
            } else {
                exported.contains(&name) || exported.contains(family(&name))
            };
            if !is_known {
                unknown.push(format!("{name} in {place}"));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// The names in the page's tables of metrics, between their marks.
fn exported() -> BTreeSet<String> {
    let page = fs::read_to_string(repository().join("docs/observability.md")).unwrap();
    let table = |name: &str| {
        let (_, rest) = page.split_once(&format!("<!-- {name} -->")).unwrap();
        rest.split_once(&format!("<!-- /{name} -->")).unwrap().0
    };
    let table = [table("metrics"), table("operator metrics")].concat();
    let cells = table.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next());
    let names = cells.map(|cell| cell.trim().trim_matches('`').split('{').next().unwrap_or_default().to_owned());
    names.filter(|name| is_ours(name)).collect()
}

/// A histogram is three metrics of one name.
fn family(name: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

fn is_ours(name: &str) -> bool {
    name.contains(':')
        || (["ortolan_", "process_"].iter().any(|prefix| name.starts_with(prefix)) && !name.starts_with(LABELS))
}

/// The metrics of ours that a query names.
fn metrics(query: &str) -> BTreeSet<String> {
    let mut bare = String::new();
    let mut quote = None;
    for character in query.chars() {
        match quote {
            None if "\"'`".contains(character) => quote = Some(character),
            None => bare.push(character),
            Some(open) if open == character => quote = None,
            Some(_) => {}
        }
    }
    let words = bare.split(|character: char| !(character.is_ascii_alphanumeric() || "_:".contains(character)));
    // A word that begins with a digit is a number or a duration, such as the 5m: of a subquery.
    let names = words.filter(|word| !word.starts_with(|first: char| first.is_ascii_digit()));
    names.filter(|word| is_ours(word)).map(str::to_owned).collect()
}

#[test]
fn metrics_are_found_beside_labels_strings_and_durations() {
    let query = r#"sum by (ortolan_dev_revision) (rate(ortolan_x_bucket{le="ortolan_y"}[5m:1m])) / model:z:sum"#;
    assert_eq!(metrics(query).into_iter().collect::<Vec<_>>(), ["model:z:sum", "ortolan_x_bucket"]);
}
