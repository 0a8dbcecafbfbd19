//! Prometheus' text format 0.0.4, made of OpenMetrics, for tools that do not read the newer form. Here because both programs
//! export metrics, and each of them only knows this crate.

use std::{borrow::Cow, collections::BTreeMap};

/// Whether a scraper that sends these headers Accept takes OpenMetrics, at least as gladly as the older form.
#[must_use]
pub fn accepts_openmetrics(accept: &[&str]) -> bool {
    let weight = |wanted: &str| {
        let ranges = accept.iter().flat_map(|line| line.split(',')).map(|range| range.split(';').map(str::trim));
        let weights = ranges.filter_map(|mut parts| {
            parts.next().filter(|kind| kind.eq_ignore_ascii_case(wanted))?;
            let given = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            Some(given.map_or(1.0, |given| given.parse().unwrap_or(0.0)))
        });
        weights.fold(0.0, f64::max)
    };
    let openmetrics = weight("application/openmetrics-text");
    openmetrics > 0.0 && openmetrics >= weight("text/plain")
}

/// In the older form a counter's metadata carries its full name, an info is a gauge, and there are no exemplars and no end mark.
#[must_use]
pub fn openmetrics_to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let types: Vec<(&str, &str)> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|rest| rest.rsplit_once(' '))
        .collect();
    let suffix = |name: &str| match types.iter().find(|(known, _)| *known == name) {
        Some((_, "counter")) => "_total",
        Some((_, "info")) => "_info",
        _ => "",
    };
    // Few lines have a #, and there are a hundred for each model: those between are copied together.
    let mut rest = openmetrics;
    while let Some(at) = rest.find('#') {
        let begin = rest[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let end = rest[at..].find('\n').map_or(rest.len(), |newline| at + newline);
        text.push_str(&rest[..begin]);
        if let Some(line) = older_line(&rest[begin..end], suffix) {
            text.push_str(&line);
            text.push('\n');
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    text.push_str(rest);
    text
}

/// A line with a # in the older form; `None` where that has none like it.
fn older_line<'a>(line: &'a str, suffix: impl Fn(&str) -> &'static str) -> Option<Cow<'a, str>> {
    if line == "# EOF" || line.starts_with("# UNIT") {
        return None;
    }
    Some(match line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) {
        Some((keyword @ ("TYPE" | "HELP"), rest)) => {
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let rest = match (keyword, rest) {
                ("TYPE", "info") => "gauge",
                ("TYPE", "unknown") => "untyped",
                _ => rest,
            };
            format!("# {keyword} {name}{} {rest}", suffix(name)).into()
        }
        _ => without_exemplar(line).into(),
    })
}

/// A sample's exemplar follows its number; a label may hold the same characters before it.
fn without_exemplar(line: &str) -> &str {
    let after_labels = line.find("} ").map_or(0, |at| at + 1);
    line[after_labels..].find(" # {").map_or(line, |at| &line[..after_labels + at])
}

/// A page with the table of metrics between `<!-- NAME -->` and `<!-- /NAME -->` written anew: name, kind, labels, help. `None`
/// where the page has no such marks.
#[must_use]
pub fn with_table(page: &str, name: &str, openmetrics: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("\n<!-- /{name} -->"));
    let (head, rest) = page.split_once(&begin)?;
    let (_, tail) = rest.split_once(&end)?;
    Some([head, &begin, &table(openmetrics), &end, tail].concat())
}

/// A line of Markdown for each metric, sorted.
fn table(openmetrics: &str) -> String {
    let about = |keyword: &str| -> BTreeMap<&str, &str> {
        openmetrics.lines().filter_map(|line| line.strip_prefix(keyword)?.split_once(' ')).collect()
    };
    let (kinds, helps) = (about("# TYPE "), about("# HELP "));
    let mut rows = vec!["| metric | kind | labels | |".to_owned(), "|---|---|---|---|".to_owned()];
    for (name, kind) in kinds {
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let labels: Vec<String> =
            labels_of(name, openmetrics).into_iter().filter(|key| *key != "le").map(|key| format!("`{key}`")).collect();
        let help = helps.get(name).map_or("", |help| help.trim_end_matches('.'));
        rows.push(format!("| `{name}{suffix}` | {kind} | {} | {help} |", labels.join(", ")));
    }
    rows.join("\n")
}

/// The labels of the first series of a metric.
fn labels_of<'a>(name: &str, openmetrics: &'a str) -> Vec<&'a str> {
    let is_its_own = |rest: &str| ["{", " ", "_total", "_info", "_bucket"].iter().any(|next| rest.starts_with(next));
    let first = openmetrics.lines().find(|line| line.strip_prefix(name).is_some_and(is_its_own)).unwrap_or_default();
    let inside = first.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(inside, _)| inside);
    inside.split(',').filter_map(|label| label.split_once('=')).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_form_names_counters_in_full_and_has_no_exemplars() {
        let openmetrics = "# HELP a Things.\n# TYPE a counter\na_total{b=\"x # {\"} 3\n# TYPE h histogram\n# UNIT h seconds\n\
            h_bucket{le=\"1.0\"} 1 # {trace_id=\"0a\"} 0.5\n# TYPE i info\ni_info{v=\"1\"} 1\n# EOF\n";
        let wanted = "# HELP a_total Things.\n# TYPE a_total counter\na_total{b=\"x # {\"} 3\n# TYPE h histogram\n\
            h_bucket{le=\"1.0\"} 1\n# TYPE i_info gauge\ni_info{v=\"1\"} 1\n";
        assert_eq!(openmetrics_to_prometheus(openmetrics), wanted);
    }

    #[test]
    fn a_scraper_gets_the_form_that_it_would_rather_have() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for yes in
            [&[prometheus][..], &["Application/OpenMetrics-Text"], &["text/plain", "application/openmetrics-text"]]
        {
            assert!(accepts_openmetrics(yes), "{yes:?}");
        }
        let rather_not = "application/openmetrics-text; q=0.1, text/plain; q=0.5";
        for no in [&[][..], &["*/*"], &["text/plain"], &["application/openmetrics-text;q=0"], &[rather_not]] {
            assert!(!accepts_openmetrics(no), "{no:?}");
        }
    }

    #[test]
    fn the_table_of_a_page_has_a_line_for_each_metric() {
        let page = "before\n<!-- metrics -->\nold\n<!-- /metrics -->\nafter\n";
        let openmetrics = "# HELP a Things.\n# TYPE a counter\na_total{b=\"1\",c=\"2\"} 3\n# HELP g Now.\n# TYPE g gauge\ng 1\n# EOF\n";
        let wanted = "before\n<!-- metrics -->\n| metric | kind | labels | |\n|---|---|---|---|\n\
            | `a_total` | counter | `b`, `c` | Things |\n| `g` | gauge |  | Now |\n<!-- /metrics -->\nafter\n";
        assert_eq!(with_table(page, "metrics", openmetrics).as_deref(), Some(wanted));
        assert_eq!(with_table(page, "other", openmetrics), None);
    }
}
