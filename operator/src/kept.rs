//! An object of the API server, as a cache keeps it.

use std::sync::Arc;

use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};

use crate::causes::chain;

/// Cheap to clone. Most of what a Deployment takes in memory is room for fields that nobody has set, which JSON does without.
#[derive(Debug, Clone)]
pub enum Kept<K> {
    /// Ready to be read.
    Whole(Arc<K>),
    /// As JSON, unpacked for whoever reads it.
    Packed(Arc<[u8]>),
}

impl<K> Kept<K> {
    /// As it is.
    pub fn whole(object: K) -> Self {
        Self::Whole(Arc::new(object))
    }
}

impl<K: Resource<DynamicType = ()> + Serialize + DeserializeOwned> Kept<K> {
    /// As JSON.
    pub fn packed(object: K) -> Self {
        match serde_json::to_vec(&object) {
            Ok(json) => Self::Packed(json.into()),
            // It came as JSON, so it has that form.
            Err(_) => Self::whole(object),
        }
    }

    /// The object.
    pub fn object(&self) -> Option<Arc<K>> {
        match self {
            Self::Whole(object) => Some(Arc::clone(object)),
            Self::Packed(json) => match serde_json::from_slice(json) {
                Ok(object) => Some(Arc::new(object)),
                Err(error) => {
                    // We have written it ourselves.
                    tracing::error!(kind = %K::kind(&()), error = chain(&error), "an object that was kept cannot be read");
                    None
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;

    use super::*;

    #[test]
    fn a_packed_object_comes_back_as_it_was_in_a_fraction_of_the_room() {
        let resources = serde_json::json!({"limits": {"cpu": "200m", "memory": "1Gi"}});
        let container = serde_json::json!({"name": "server", "image": "server:1", "resources": resources});
        let deployment: Deployment = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "d", "creationTimestamp": "2026-01-02T03:04:05Z", "annotations": {"a": "\u{1f426} \"b\""}},
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
                "template": {"spec": {"containers": [container]}},
            },
            "status": {"replicas": 3},
        }))
        .unwrap();
        let packed = Kept::packed(deployment.clone());
        assert_eq!(packed.object().as_deref(), Some(&deployment));
        let Kept::Packed(json) = packed else { panic!("it is not packed") };
        let most = size_of::<Deployment>();
        assert!(json.len() < most, "{} bytes, and the type alone has {most}", json.len());
        assert_eq!(Kept::whole(deployment.clone()).object().as_deref(), Some(&deployment));
    }
}
