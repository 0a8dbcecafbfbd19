//! Narrows expressions of PromQL to a namespace.
//!
//! The rules are written for all models that a Prometheus knows. Each namespace gets its own copy, so each copy must speak of
//! its own namespace: a hundred copies that all speak of everything would record every series a hundred times.

/// The expression with a matcher for the namespace in each of its selectors.
#[must_use]
pub fn within(expression: &str, namespace: &str) -> String {
    let matcher = format!("namespace=\"{namespace}\"");
    let mut narrowed = String::with_capacity(expression.len() + 64);
    let mut rest = expression;
    while let Some(token) = next(rest) {
        rest = &rest[token.text.len()..];
        narrowed.push_str(token.text);
        match token.kind {
            Kind::Word if is_labels(token.text) => rest = copy_group(rest, &mut narrowed),
            Kind::Word if is_metric(token.text, rest) => {
                if !rest.trim_start().starts_with('{') {
                    narrowed.push_str(&format!("{{{matcher}}}"));
                }
            }
            Kind::Opening => {
                let is_empty = rest.trim_start().starts_with('}');
                narrowed.push_str(&matcher);
                narrowed.push_str(if is_empty { "" } else { "," });
                rest = copy_until(rest, '}', &mut narrowed);
            }
            Kind::Range => rest = copy_until(rest, ']', &mut narrowed),
            Kind::Word | Kind::Other => {}
        }
    }
    narrowed
}

enum Kind {
    /// A metric, a function, an operator or a label.
    Word,
    /// `{`, with which matchers begin.
    Opening,
    /// `[`, with which a range begins: no selector is in it.
    Range,
    /// Numbers, strings, comments, blanks and signs.
    Other,
}

struct Token<'a> {
    kind: Kind,
    text: &'a str,
}

/// The first token; none at the end.
fn next(text: &str) -> Option<Token<'_>> {
    let first = text.chars().next()?;
    let (kind, length) = match first {
        '{' => (Kind::Opening, 1),
        '[' => (Kind::Range, 1),
        '#' => (Kind::Other, text.find('\n').unwrap_or(text.len())),
        '"' | '\'' | '`' => (Kind::Other, string(text, first)),
        // A number or a duration, with all that belongs to it: 1e3, 0x1f, 5m.
        '0'..='9' => (Kind::Other, run(text, |it| it.is_ascii_alphanumeric() || it == '.')),
        _ if is_word(first) => (Kind::Word, run(text, |it| is_word(it) || it.is_ascii_digit())),
        _ => (Kind::Other, first.len_utf8()),
    };
    Some(Token { kind, text: &text[..length] })
}

fn is_word(letter: char) -> bool {
    letter.is_ascii_alphabetic() || letter == '_' || letter == ':'
}

fn run(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|letter| !belongs(letter)).unwrap_or(text.len())
}

/// Length of a string with its quotes; those of the kind ` know no escapes.
fn string(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quote != '`' => escaped = true,
            _ if letter == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// A list of labels may follow in parentheses.
fn is_labels(word: &str) -> bool {
    matches!(word, "by" | "without" | "on" | "ignoring" | "group_left" | "group_right")
}

/// Whether a word names a series: it is no keyword, and no function or aggregation, which parentheses or a keyword follow.
fn is_metric(word: &str, rest: &str) -> bool {
    const KEYWORDS: [&str; 8] = ["and", "or", "unless", "atan2", "bool", "offset", "inf", "nan"];
    let rest = rest.trim_start();
    let followed_by = run(rest, is_word);
    !KEYWORDS.contains(&word.to_ascii_lowercase().as_str())
        && !rest.starts_with('(')
        && !matches!(&rest[..followed_by], "by" | "without")
}

/// Copies a list in parentheses, if there is one. Returns what follows it.
fn copy_group<'a>(text: &'a str, to: &mut String) -> &'a str {
    let blanks = run(text, char::is_whitespace);
    if text[blanks..].starts_with('(') { copy_until(text, ')', to) } else { text }
}

/// Copies up to and with a sign that is in no string. Returns what follows it.
fn copy_until<'a>(text: &'a str, end: char, to: &mut String) -> &'a str {
    let mut rest = text;
    while let Some(token) = next(rest) {
        rest = &rest[token.text.len()..];
        to.push_str(token.text);
        if token.text.starts_with(end) {
            break;
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    fn every_selector_gets_the_namespace_and_nothing_else_does() {
        for (expression, wanted) in [
            ("up", r#"up{namespace="bar"}"#),
            ("up{}", r#"up{namespace="bar"}"#),
            (r#"up { job = "a" } == 0"#, r#"up {namespace="bar", job = "a" } == 0"#),
            (r#"{__name__=~"a.*"}"#, r#"{namespace="bar",__name__=~"a.*"}"#),
            (
                "sum by (namespace, model) (rate(a_total[5m]))",
                r#"sum by (namespace, model) (rate(a_total{namespace="bar"}[5m]))"#,
            ),
            ("sum(a) without (b)", r#"sum(a{namespace="bar"}) without (b)"#),
            ("sum without(b)(a)", r#"sum without(b)(a{namespace="bar"})"#),
            (
                "level:a:rate5m / ignoring (outcome) group_left () (b > 0)",
                r#"level:a:rate5m{namespace="bar"} / ignoring (outcome) group_left () (b{namespace="bar"} > 0)"#,
            ),
            ("a / on (x) group_left b", r#"a{namespace="bar"} / on (x) group_left b{namespace="bar"}"#),
            ("a unless on () b", r#"a{namespace="bar"} unless on () b{namespace="bar"}"#),
            ("a > bool 1e3 or vector(0)", r#"a{namespace="bar"} > bool 1e3 or vector(0)"#),
            ("a offset 10m and b @ start()", r#"a{namespace="bar"} offset 10m and b{namespace="bar"} @ start()"#),
            ("max_over_time(a{b=\"{x} \\\" y\"}[6h:5m])", r#"max_over_time(a{namespace="bar",b="{x} \" y"}[6h:5m])"#),
            (
                "label_replace(a, \"b\", \"$1\", 'c', `(.+)`) # a comment on b\n+ d",
                "label_replace(a{namespace=\"bar\"}, \"b\", \"$1\", 'c', `(.+)`) # a comment on b\n+ d{namespace=\"bar\"}",
            ),
            ("histogram_quantile(0.5, a) >= 0 * -Inf", r#"histogram_quantile(0.5, a{namespace="bar"}) >= 0 * -Inf"#),
            ("count_values(\"v\", a) + time() - 0x1F", r#"count_values("v", a{namespace="bar"}) + time() - 0x1F"#),
            ("", ""),
        ] {
            assert_eq!(within(expression, "bar"), wanted, "{expression}");
        }
    }

    #[test]
    fn text_that_is_no_expression_ends_too() {
        for broken in ["a{b=\"", "a[", "sum by (", "{", "\\", "é{", "`", "a{b=~'\\"] {
            assert!(within(broken, "bar").len() >= broken.len(), "{broken}");
        }
    }
}
