//! The routes that responses are counted by.

/// A route of ours, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route(u8);

/// By what they match.
const ROUTES: [&str; 19] = [
    "/v2/models/{model}/infer",
    "/predict/{model}",
    "/v2/models/{model}/versions/{version}/infer",
    "/health",
    "/health/ready",
    "/health/detailed",
    "/observability",
    crds::load::PATH,
    "/ready",
    "/info",
    "/metrics",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{model}",
    "/v2/models/{model}/ready",
    "/v2/models/{model}/versions/{version}",
    "/v2/models/{model}/versions/{version}/ready",
    // Whatever matches none of them.
    "other",
];

impl Route {
    /// How many there are.
    pub const COUNT: usize = ROUTES.len();

    /// The one that a path of the router is; closed, for clients send whatever they like.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let one = if path == "/v2/" { "/v2" } else { path };
        Self::all().find(|route| route.label() == one).unwrap_or(Self(Self::COUNT as u8 - 1))
    }

    /// All of them, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }

    /// What it is called.
    #[must_use]
    pub fn label(self) -> &'static str {
        ROUTES[usize::from(self.0)]
    }

    /// Its number, below [`Self::COUNT`].
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_two_ways_to_write_it_is_one_route_and_what_is_none_is_told_as_other() {
        assert_eq!(
            ["/v2/", "/v2", "", "/nowhere"].map(|path| Route::of(path).label()),
            ["/v2", "/v2", "other", "other"]
        );
        assert!(Route::all().all(|route| Route::of(route.label()) == route));
    }
}
