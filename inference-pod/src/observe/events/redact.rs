//! What must not be written anywhere is taken out before any consumer sees an event.

use std::{borrow::Cow, sync::LazyLock};

use regex::{Regex, RegexSet};

/// In place of what was taken out.
const REDACTED: &str = "[redacted]";

/// Texts that stay whole up to here; nobody reads more of an error.
const LONGEST: usize = 1000;

/// Credentials, wherever they turn up: by the scheme or the name before them, in URLs, and by their own form.
const CREDENTIALS: [&str; 5] = [
    r"(?i)\b(?:bearer|basic|digest)\s+[A-Za-z0-9._~+/=-]{4,}",
    r#"(?i)\b[a-z0-9_-]*(?:password|passwd|secret|token|api[_-]?key|access[_-]?key|authorization|cookie|credential)[a-z0-9_-]*\\*["'`]?\s*[:=]\s*\\*["'`]?[^\s"'`,;&}\]]+"#,
    r"://[^/\s:@]*:[^/\s@]+@",
    r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
];

/// An image or a tensor as base64: no word of an event is so long. Paths and digests, which lines of the process have, are.
const PAYLOAD: &str = r"[A-Za-z0-9+/_-]{64,}={0,2}";

/// Text between quotation marks of any kind: what a message quotes.
static QUOTED: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"`([^`]*)(?:`|$)|"((?:[^"\\]|\\.)*)(?:"|$)|\B'([^']*)(?:'|$)"#).ok());

/// What came instead of what was expected, as our messages put it.
static GOT: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\bgot (.*)").ok());

/// Numbers and shapes give nobody away.
static NUMBERS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^(?:(?:shape|nothing|neither|both)\b)?[-\d\[\], .x]*(?:bytes|samples|inputs|pixels)?$").ok()
});

/// Takes out what must not be written.
#[derive(Debug)]
pub struct Redactor {
    any: RegexSet,
    each: Vec<Regex>,
}

impl Redactor {
    /// Takes credentials out, and what these patterns match.
    ///
    /// # Errors
    /// What is wrong with a pattern.
    pub fn new(patterns: &[String]) -> Result<Self, regex::Error> {
        Self::of(CREDENTIALS.into_iter().chain([PAYLOAD]).chain(patterns.iter().map(String::as_str)).collect())
    }

    /// The same for what the process says of itself, whose paths and digests stay.
    ///
    /// # Errors
    /// What is wrong with a pattern.
    pub fn of_lines(patterns: &[String]) -> Result<Self, regex::Error> {
        Self::of(CREDENTIALS.into_iter().chain(patterns.iter().map(String::as_str)).collect())
    }

    fn of(all: Vec<&str>) -> Result<Self, regex::Error> {
        Ok(Self { any: RegexSet::new(&all)?, each: all.into_iter().map(Regex::new).collect::<Result<_, _>>()? })
    }

    /// A text that may be written, cut where it is long.
    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        self.clean_whole(cut(text)).into_owned()
    }

    /// A text that may be written, however long.
    #[must_use]
    pub fn clean_whole<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for index in &self.any.matches(&text) {
            text = Cow::Owned(self.each[index].replace_all(&text, REDACTED).into_owned());
        }
        text
    }
}

/// A message about a client's input without what it quotes of it, but for numbers, and for words that are our own: names of a
/// model's inputs, for example.
#[must_use]
pub fn without_quotes(message: &str, is_ours: impl Fn(&str) -> bool) -> String {
    let (Some(quoted), Some(got), Some(numbers)) = (&*QUOTED, &*GOT, &*NUMBERS) else { return REDACTED.to_owned() };
    let message = got.replace_all(message, |found: &regex::Captures<'_>| {
        let came = found[1].trim();
        if is_ours(came) || numbers.is_match(came) { found[0].to_owned() } else { format!("got {REDACTED}") }
    });
    let message = &message;
    let replaced = quoted.replace_all(message, |found: &regex::Captures<'_>| {
        let inner = found.iter().skip(1).flatten().next().map_or("", |inner| inner.as_str());
        if is_ours(inner) { found[0].to_owned() } else { REDACTED.to_owned() }
    });
    replaced.into_owned()
}

fn cut(text: &str) -> &str {
    text.char_indices().nth(LONGEST).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(text: &str) -> String {
        Redactor::new(&[r"\bcustomer-\d+".to_owned()]).unwrap().clean(text)
    }

    #[test]
    fn credentials_go_by_their_names_and_forms() {
        for secret in [
            "Authorization: Bearer abc.def-123",
            "url https://user:hunter2@host/x failed",
            "password=hunter2 and more",
            r#"{"api_key": "hunter2"}"#,
            r#"said \"{\\\"api_key\\\": \\\"hunter2\\\"}\""#,
            "AWS_SECRET_ACCESS_KEY=hunter2",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.hunter2",
            "AKIAABCDEFGHIJKLMNOP",
            "customer-4711 called",
        ] {
            let clean = clean(secret);
            assert!(clean.contains(REDACTED), "{secret} became {clean}");
            for part in ["hunter2", "abc.def", "4711", "ABCDEFGH"] {
                assert!(!clean.contains(part), "{secret} became {clean}");
            }
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "input `ids`: expected shape [-1, 16], got [1, 17]",
            "ONNX Runtime failed: Non-zero status code returned while running Gemm node. Name:'/fc/Gemm'",
            "no answer within 30000 ms, the longest that a request may take",
        ] {
            assert_eq!(clean(text), text);
        }
    }

    #[test]
    fn a_line_of_the_process_keeps_its_digests_and_loses_its_credentials() {
        let redactor = Redactor::of_lines(&[]).unwrap();
        let digest = format!("expected sha256 {}", "0a".repeat(32));
        assert_eq!(redactor.clean_whole(&digest), digest);
        assert_eq!(redactor.clean_whole("https://user:hunter2@host/x failed"), "https[redacted]host/x failed");
    }

    #[test]
    fn a_long_run_of_base64_is_an_image() {
        let image = "iVBORw0KGgo".repeat(20);
        assert_eq!(clean(&format!("got {image} instead")), "got [redacted] instead");
    }

    #[test]
    fn a_quoted_word_of_the_client_goes_and_one_of_ours_stays() {
        let said = without_quotes("unknown input `hunter2`; \"x\\\"y\" and 'z for `ids`", |word| word == "ids");
        assert_eq!(said, "unknown input [redacted]; [redacted] and [redacted]");
        assert_eq!(
            without_quotes("the model's inputs are `ids`", |word| word == "ids"),
            "the model's inputs are `ids`"
        );
        assert_eq!(without_quotes("input `ids`: missing", |word| word == "ids"), "input `ids`: missing");
    }

    #[test]
    fn what_came_instead_goes_unless_it_is_a_number_or_a_shape() {
        let said = |message| without_quotes(message, |word| word == "INT64");
        assert_eq!(
            said("expected content type application/json, got hunter2"),
            "expected content type application/json, got [redacted]"
        );
        for harmless in [
            "expected 2 samples, got 3",
            "expected shape [-1, 16], got [1, 17]",
            "expected FP32, got INT64",
            "expected one, got nothing",
        ] {
            assert_eq!(said(harmless), harmless);
        }
    }
}
