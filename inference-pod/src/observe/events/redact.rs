//! What must not be written anywhere is taken out before any consumer sees an event.

use std::{borrow::Cow, sync::LazyLock};

use regex::{Regex, RegexSet};

/// In place of what was taken out.
const REDACTED: &str = "[redacted]";

/// Texts that stay whole up to here; nobody reads more of an error.
const LONGEST: usize = 1000;

/// Credentials by their own form, by the scheme before them, and in URLs. In URLs a password may have any letter, but what looks
/// like a port is one.
const FORMS: [&str; 7] = [
    r"(?s)-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|$)",
    r"(?i)\b(?:bearer|basic|digest|apikey)\s+[A-Za-z0-9._~+/=-]{4,}",
    r#"://[^/\s"`]*@|://[^/\s:@"`]*:[0-9]*[^0-9/\s"`][^\s"`]*@"#,
    r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    r"\b(?:hf|gh[pousr])_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}",
    r"\bglpat-[A-Za-z0-9_-]{16,}",
];

/// The name of a credential, and what stands between it and its value. Either may be written as in URLs, or in quotes that are
/// quoted themselves.
const NAMED: &str = r#"(?ix)
    \b(?<name>
        [a-z0-9_-]*
        (?:pass(?:word|wd|phrase)|pwd|secret|token|(?:api|access|account|private|shared)[_-]?key
            |authorization|cookie|credential|(?:amz|goog)-signature)
        [a-z0-9_-]*
        |sig(?:nature)?
    )
    (?:\\*["'`]|%(?:25)*2[27])?\s*(?:[:=]|%(?:25)*3[ad])\s*"#;

/// Names that end so say where a credential is.
const PLACES: [&str; 3] = ["_file", "_path", "_dir"];

/// Names that end so belong to headers, whose value is the whole line.
const HEADERS: [&str; 3] = ["authorization", "cookie", "cookies"];

/// What follows a name so is said of it, and is not its value.
const FAULTS: [&str; 7] = ["expected ", "invalid ", "unknown ", "missing ", "must ", "cannot ", "not "];

/// An image or a tensor as base64: no word of an event is so long. Paths and digests, which lines of the process have, are.
const PAYLOAD: &str = r"[A-Za-z0-9+/_-]{64,}={0,2}";

/// Text between quotation marks: what a message quotes, beside what it has between backticks.
static QUOTED: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"(?s)"((?:[^"\\]|\\.)*)(?:"|$)|\B'([^']*)(?:'|$)"#).ok());

/// What came instead of what was expected, as our messages put it.
static GOT: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?s)\bgot (.*)").ok());

/// Numbers and shapes give nobody away.
static NUMBERS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^(?:(?:shape|nothing|neither|both)\b)?[-\d\[\], .x]*(?:bytes|samples|inputs|pixels)?$").ok()
});

/// Takes out what must not be written.
#[derive(Debug)]
pub struct Redactor {
    any: RegexSet,
    each: Vec<Pattern>,
}

#[derive(Debug)]
enum Pattern {
    /// What it matches goes.
    Whole(Regex),
    /// It matches the names of credentials; they go with their values.
    Names(Regex),
}

impl Pattern {
    fn take_out(&self, text: &str) -> String {
        match self {
            Self::Whole(pattern) => pattern.replace_all(text, REDACTED).into_owned(),
            Self::Names(names) => without_values(text, names, &FAULTS),
        }
    }
}

impl Redactor {
    /// Takes credentials out, and what these patterns match.
    ///
    /// # Errors
    /// What is wrong with a pattern.
    pub fn new(patterns: &[String]) -> Result<Self, regex::Error> {
        Self::of([PAYLOAD].into_iter().chain(patterns.iter().map(String::as_str)).collect())
    }

    /// The same for what the process says of itself, whose paths and digests stay.
    ///
    /// # Errors
    /// What is wrong with a pattern.
    pub fn of_lines(patterns: &[String]) -> Result<Self, regex::Error> {
        Self::of(patterns.iter().map(String::as_str).collect())
    }

    /// By credentials and by these. Forms go first: a scheme and what follows it may be the value of a name.
    fn of(others: Vec<&str>) -> Result<Self, regex::Error> {
        let any = RegexSet::new(FORMS.into_iter().chain([NAMED]).chain(others.iter().copied()))?;
        let whole = |pattern: &str| Regex::new(pattern).map(Pattern::Whole);
        let names = Regex::new(NAMED).map(Pattern::Names);
        let forms = FORMS.into_iter().map(whole);
        Ok(Self { any, each: forms.chain([names]).chain(others.into_iter().map(whole)).collect::<Result<_, _>>()? })
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
            text = Cow::Owned(self.each[index].take_out(&text));
        }
        text
    }
}

/// A text without the credentials that have a name in it. What is said of a name, which begins with one of `faults`, stays to
/// the end of its line, without what it quotes.
fn without_values(text: &str, names: &Regex, faults: &[&str]) -> String {
    let (mut kept, mut at) = (String::with_capacity(text.len()), 0);
    while let Some((found, whole)) =
        names.captures_at(text, at).and_then(|found| Some((found.name("name")?, found.get(0)?)))
    {
        let value = &text[whole.end()..];
        let ends_with = |ends: &[&str]| ends.iter().any(|end| found.as_str().to_ascii_lowercase().ends_with(end));
        let end = if faults.iter().any(|fault| value.starts_with(fault)) {
            let line = line_end(value);
            kept.push_str(&text[at..whole.end()]);
            // Once in a line: a text of faults in faults must not cost more than its length.
            kept.push_str(&without_values(&without_quotes(&value[..line], |_| false), names, &[]));
            line
        } else if ends_with(&PLACES) {
            kept.push_str(&text[at..whole.end()]);
            0
        } else {
            let end = value_end(value, ends_with(&HEADERS));
            kept.push_str(if end == 0 { &text[at..whole.end()] } else { &text[at..whole.start()] });
            kept.push_str(if end == 0 { "" } else { REDACTED });
            end
        };
        at = whole.end() + end;
    }
    kept + &text[at..]
}

fn line_end(text: &str) -> usize {
    text.find(['\r', '\n']).unwrap_or(text.len())
}

/// Where the value ends that a text begins with: before the quotation mark that closes it, after the bracket that does, at the
/// end of the line, or of the word.
fn value_end(text: &str, is_line: bool) -> usize {
    let slashes = text.len() - text.trim_start_matches('\\').len();
    match text[slashes..].chars().next() {
        Some(quote @ ('"' | '\'' | '`')) => {
            let begin = slashes + 1;
            closing(&text[begin..], quote, slashes).map_or(text.len(), |end| begin + end - slashes)
        }
        _ if is_line => line_end(text),
        _ => word_end(text),
    }
}

/// Where the quotation mark is that closes a text in quotes with so many backslashes before them. Those inside have more, for
/// each that is quoted doubles what stands before it.
fn closing(text: &str, quote: char, slashes: usize) -> Option<usize> {
    let mut before = 0;
    for (at, letter) in text.char_indices() {
        match letter {
            '\\' => before += 1,
            letter if letter == quote && before % (2 * (slashes + 1)) == slashes => return Some(at),
            _ => before = 0,
        }
    }
    None
}

/// Where a word ends, with what it has in brackets.
fn word_end(text: &str) -> usize {
    let is_end =
        |letter: char| letter.is_whitespace() || matches!(letter, '"' | '\'' | '`' | ',' | ';' | '&' | '}' | ']');
    match text.find(|letter: char| is_end(letter) || matches!(letter, '(' | '[' | '{')) {
        Some(at) if text[at..].starts_with(['(', '[', '{']) => at + brackets_end(&text[at..]),
        Some(at) => at,
        None => text.len(),
    }
}

/// Where the brackets end that a text begins with; those in quotes are none.
fn brackets_end(text: &str) -> usize {
    let (mut depth, mut slashes, mut at) = (0_usize, 0, 0);
    while let Some(letter) = text[at..].chars().next() {
        at += letter.len_utf8();
        match letter {
            '"' => at += closing(&text[at..], '"', slashes).map_or(text.len() - at, |end| end + 1),
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
        slashes = if letter == '\\' { slashes + 1 } else { 0 };
    }
    text.len()
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
    let message = without_backticks(&message, &is_ours);
    let replaced = quoted.replace_all(&message, |found: &regex::Captures<'_>| {
        let inner = found.iter().skip(1).flatten().next().map_or("", |inner| inner.as_str());
        if is_ours(inner) { found[0].to_owned() } else { REDACTED.to_owned() }
    });
    replaced.into_owned()
}

/// A message without what it has between backticks, but for words that are our own. What a client calls something may have
/// backticks itself, so that what is not ours goes up to the next word of ours, or to the last of them.
fn without_backticks(message: &str, is_ours: impl Fn(&str) -> bool) -> String {
    let parts: Vec<&str> = message.split('`').collect();
    let stands_alone = |part: &str| !part.starts_with(char::is_alphanumeric);
    let ours = |at: usize| is_ours(parts[at]) && parts.get(at + 1).is_some_and(|after| stands_alone(after));
    let last = parts.len() - 1;
    let (mut kept, mut at) = (parts[0].to_owned(), 1);
    while at < last {
        let end = if ours(at) {
            kept.extend(["`", parts[at], "`"]);
            at + 1
        } else {
            kept.push_str(REDACTED);
            (at + 2..last).find(|next| ours(*next)).map_or(last, |next| next - 1)
        };
        kept.push_str(parts[end]);
        at = end + 1;
    }
    // The last one is never closed.
    if at == last { kept + REDACTED } else { kept }
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
    fn every_form_of_a_credential_goes() {
        for secret in [
            "Authorization: Token hunter2",
            "authorization: ApiKey hunter2",
            "sent ApiKey hunter2",
            "Proxy-Authorization: Digest username=\"x\", response=\"hunter2\"",
            "Cookie: a=b; session=hunter2",
            r#"{"cookie": "a=b; session=hunter2", "x": 1}"#,
            r#"{"password":"two hunter2"}"#,
            r#"{"password":"with \" inside hunter2"}"#,
            r#"said \"{\\\"password\\\": \\\"two \\\\\\\" hunter2\\\"}\""#,
            r#"{"tokens":["one", "]", "hunter2"]}"#,
            r#"{"secret":{"a":{"b":"}"},"value":"hunter2"}}"#,
            r#"Config { password: Some("two hunter2") }"#,
            "https://u:p@hunter2@h/x",
            "https://u:pa/hunter2@h/x",
            "https://u:1a/hunter2@h/x",
            "https://hunter2@h/x",
            "https://h/x?sig=hunter2&a=b",
            "https://h/x?X-Amz-Signature=hunter2",
            "https://h/x?X-Goog-Signature=hunter2",
            "AccountName=a;AccountKey=hunter2;",
            "AZURE_STORAGE_ACCOUNT_KEY=hunter2",
            "private_key=hunter2",
            "pwd=hunter2",
            "passphrase: hunter2",
            "a%26api_key%3Dhunter2",
            "%7B%22api_key%22%3A%22hunter2%22%7D",
            "a%2526api_key%253Dhunter2",
            "hf_hunter2abcdefghijklmnop",
            "glpat-hunter2abcdefghijklmnop",
            "ghp_hunter2abcdefghijklmnop",
            "github_pat_hunter2abcdefghijklmnop",
            "-----BEGIN RSA PRIVATE KEY-----\nhunter2\nabc\n-----END RSA PRIVATE KEY-----",
            "private_key=-----BEGIN PRIVATE KEY-----\\nhunter2 abc",
            r#"server.tokens_file: expected string, got a list (["hunter2", "x"])"#,
            r#"server.tokens: invalid type: string "hunter2", expected a sequence"#,
            "server.tokens: not good: token=hunter2",
            "token: not token: not token: hunter2",
        ] {
            let clean = clean(secret);
            assert!(clean.contains(REDACTED) && !clean.contains("hunter2"), "{secret} became {clean}");
        }
    }

    #[test]
    fn a_fault_of_the_config_keeps_its_key_and_loses_its_value() {
        assert_eq!(
            clean(r#"server.tokens_file: expected string, got a list (["s3cr3t-1", "s3cr3t-2"])"#),
            "server.tokens_file: expected string, got [redacted]"
        );
        assert_eq!(clean(r#"{"password":"two words","x":1}"#), r#"{"[redacted]","x":1}"#);
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "input `ids`: expected shape [-1, 16], got [1, 17]",
            "ONNX Runtime failed: Non-zero status code returned while running Gemm node. Name:'/fc/Gemm'",
            "no answer within 30000 ms, the longest that a request may take",
            "input `token_type_ids`: expected shape [-1, 16], got [1, 17]",
            "server.tokens_file: not built yet",
            "server.tokens_file: /etc/ortolan/tokens",
            "cannot fetch oci://host:5000/espresso@sha256:0a0b",
            "cannot fetch hf://org/espresso@main: hf_transfer is not there",
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
    fn what_a_client_writes_does_not_end_what_is_taken_out() {
        let said = |message| without_quotes(message, |word| matches!(word, "ids" | "mask"));
        for (message, expected) in [
            ("unknown input `a`hunter2`; the model's are ids", "unknown input [redacted]; the model's are ids"),
            ("unknown input `a`hunter2`b`; expected `ids`, `mask`", "unknown input [redacted]; expected `ids`, `mask`"),
            ("unknown input `ids`hunter2`", "unknown input [redacted]"),
            ("input `ids`: unknown output `hunter2`", "input `ids`: unknown output [redacted]"),
            ("input `ids`: `hunter2", "input `ids`: [redacted]"),
            ("expected JSON, got one\nhunter2", "expected JSON, got [redacted]"),
            ("it said \"a\\\nhunter2\"", "it said [redacted]"),
        ] {
            assert_eq!(said(message), expected);
        }
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
