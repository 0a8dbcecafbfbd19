//! SHA-256 of a file: what was asked for, and what came.

use std::{fmt, fs::File, io, io::Read as _, path::Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A buffer for reading files: large enough that calls do not count, small enough for any pod.
pub const BUFFER_BYTES: usize = 1 << 18;

/// A text that is no SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a sha256 of 64 hexadecimal digits")]
pub struct NoDigest;

/// A SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`NoDigest`] for anything else.
    pub fn parse(text: &str) -> Result<Self, NoDigest> {
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(NoDigest);
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| NoDigest)?;
        }
        Ok(Self(bytes))
    }

    /// What a hash has come to so far.
    #[must_use]
    pub fn of(hash: &Sha256) -> Self {
        Self(hash.clone().finalize().into())
    }

    /// The digest of a file, and its bytes.
    ///
    /// # Errors
    /// What the system says of the file.
    pub fn of_file(path: &Path) -> io::Result<(Self, u64)> {
        let mut file = File::open(path)?;
        let mut hash = Sha256::new();
        let mut bytes = 0;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok((Self::of(&hash), bytes));
            }
            hash.update(&buffer[..read]);
            bytes += read as u64;
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = NoDigest;
    fn try_from(text: String) -> Result<Self, NoDigest> {
        Self::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::parse(text).unwrap().to_string(), text);
        assert_eq!(Digest::parse(&text.to_uppercase()).unwrap().to_string(), text);
        assert_eq!(Digest::of(&Sha256::new()).to_string(), text, "the digest of nothing");
        for other in ["", "e3b0", &text[1..], &format!("{text}0"), &text.replace('e', "g"), &text.replace("e3", "ü")] {
            assert_eq!(Digest::parse(other), Err(NoDigest), "{other}");
        }
    }
}
