//! Prometheus' text format 0.0.4, made of OpenMetrics, for tools that do not read the newer form. Here because both programs
//! export metrics, and each of them only knows this crate.

use std::fmt::Write as _;

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
    for line in openmetrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT")) {
        let written = match line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) {
            Some((keyword @ ("TYPE" | "HELP"), rest)) => {
                let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let rest = match (keyword, rest) {
                    ("TYPE", "info") => "gauge",
                    ("TYPE", "unknown") => "untyped",
                    _ => rest,
                };
                writeln!(text, "# {keyword} {name}{} {rest}", suffix(name))
            }
            _ => writeln!(text, "{}", without_exemplar(line)),
        };
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
    }
    text
}

/// A sample's exemplar follows its number; a label may hold the same characters before it.
fn without_exemplar(line: &str) -> &str {
    let after_labels = line.find("} ").map_or(0, |at| at + 1);
    line[after_labels..].find(" # {").map_or(line, |at| &line[..after_labels + at])
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
}
