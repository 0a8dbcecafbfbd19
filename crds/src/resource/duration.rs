//! Lengths of time as people write them in a resource.

use std::{borrow::Cow, fmt, str::FromStr, time};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A length of time: a whole number of at most six digits, and a unit (`ms`, `s`, `m`, `h`). Keeps the form it was
/// written in, so that what is read and written again has not changed; two are equal if they last equally long.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration {
    amount: u32,
    unit: Unit,
}

#[derive(Debug, Clone, Copy)]
enum Unit {
    Milliseconds,
    Seconds,
    Minutes,
    Hours,
}

/// Text that is no [`Duration`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a whole number of at most six digits and one of ms, s, m, h, got `{0}`")]
pub struct NoDuration(pub String);

/// What the API server lets through; all of it can be parsed, and is far from the 292 years that CEL can count.
const PATTERN: &str = "^[0-9]{1,6}(ms|s|m|h)$";

impl Duration {
    /// So many milliseconds.
    #[must_use]
    pub(super) const fn milliseconds(amount: u32) -> Self {
        Self { amount, unit: Unit::Milliseconds }
    }

    /// So many seconds.
    #[must_use]
    pub(super) const fn seconds(amount: u32) -> Self {
        Self { amount, unit: Unit::Seconds }
    }

    /// So many minutes.
    #[must_use]
    pub(super) const fn minutes(amount: u32) -> Self {
        Self { amount, unit: Unit::Minutes }
    }

    /// Its length.
    #[must_use]
    pub const fn length(self) -> time::Duration {
        time::Duration::from_millis(self.as_millis())
    }

    /// Its length in milliseconds, the unit of the serving config.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        // Widening; `u64::from` is not const.
        self.amount as u64 * self.unit.in_millis()
    }
}

impl Unit {
    const fn in_millis(self) -> u64 {
        match self {
            Self::Milliseconds => 1,
            Self::Seconds => 1_000,
            Self::Minutes => 60_000,
            Self::Hours => 3_600_000,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::Minutes => "m",
            Self::Hours => "h",
        }
    }
}

impl FromStr for Duration {
    type Err = NoDuration;

    fn from_str(text: &str) -> Result<Self, NoDuration> {
        let no_duration = || NoDuration(text.to_owned());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=6).contains(&digits) {
            return Err(no_duration());
        }
        let unit = match &text[digits..] {
            "ms" => Unit::Milliseconds,
            "s" => Unit::Seconds,
            "m" => Unit::Minutes,
            "h" => Unit::Hours,
            _ => return Err(no_duration()),
        };
        Ok(Self { amount: text[..digits].parse().map_err(|_| no_duration())?, unit })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.amount, self.unit.as_str())
    }
}

impl TryFrom<String> for Duration {
    type Error = NoDuration;

    fn try_from(text: String) -> Result<Self, NoDuration> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.to_string()
    }
}

impl PartialEq for Duration {
    fn eq(&self, other: &Self) -> bool {
        self.as_millis() == other.as_millis()
    }
}

impl Eq for Duration {}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": PATTERN, "maxLength": 8})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_keeps_its_form_and_is_compared_by_its_length() {
        let minute: Duration = "60s".parse().unwrap();
        assert_eq!(minute.to_string(), "60s");
        assert_eq!(minute, Duration::minutes(1));
        assert_ne!(minute, Duration::milliseconds(60));
        assert_eq!("999999h".parse::<Duration>().unwrap().as_millis(), 3_599_996_400_000);
    }

    #[test]
    fn text_without_a_number_or_a_unit_is_no_duration() {
        for text in ["", "s", "5", "-5s", "1.5s", "1234567s", "5 s", "5d", "5sm", "５s"] {
            assert_eq!(text.parse::<Duration>(), Err(NoDuration(text.to_owned())), "{text}");
        }
    }
}
