//! An error as one line of text, for logs and for people.

use std::error::Error;

/// An error and what caused it. `Display` of ours leaves out the cause, and the logs' JSON has nothing but that; others, such as
/// kube, may name theirs, which is not told twice.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.ends_with(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Spilt {
        #[error("no coffee")]
        Silent(#[source] Box<Spilt>),
        #[error("the cup fell: {0}")]
        Talking(#[source] Box<Spilt>),
        #[error("the floor is wet")]
        First,
    }

    #[test]
    fn each_cause_is_told_once() {
        let talking = Spilt::Talking(Box::new(Spilt::First));
        assert_eq!(chain(&talking), "the cup fell: the floor is wet");
        assert_eq!(chain(&Spilt::Silent(Box::new(talking))), "no coffee: the cup fell: the floor is wet");
    }
}
