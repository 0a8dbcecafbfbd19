//! Whose object is whose: what an InferenceModel has, what its namespace shares, and what belongs to somebody else.

use crds::resource::{InferenceModel, conditions::accepted};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, OwnerReference};
use kube::{Resource, ResourceExt as _};

use crate::{
    autoscalers::is_model,
    names,
    observe::{is_left_to, is_owned_by},
    validate::Refusal,
};

/// Whose object is written.
#[derive(Debug, Clone, Copy)]
pub enum Owner<'a> {
    /// A child of one InferenceModel.
    Model(&'a InferenceModel),
    /// What the InferenceModels of this namespace share.
    Namespace(&'a str),
}

/// What is written for a namespace is remembered under its name with this, which no uid begins with.
pub const NAMESPACE_PREFIX: &str = "namespace/";

impl Owner<'_> {
    /// Where its objects are.
    #[must_use]
    pub fn namespace(&self) -> String {
        match self {
            Self::Model(model) => model.namespace().unwrap_or_default(),
            Self::Namespace(namespace) => (*namespace).to_owned(),
        }
    }

    /// What tells it from all others.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Model(model) => model.uid().unwrap_or_default(),
            Self::Namespace(namespace) => format!("{NAMESPACE_PREFIX}{namespace}"),
        }
    }

    /// Whether an object is this owner's.
    #[must_use]
    pub fn has<K: Resource>(&self, found: &K) -> bool {
        match self {
            Self::Model(model) if is_owned_by(found.meta(), &model.uid().unwrap_or_default()) => true,
            // One that we wrote and that nobody owns: the reference was taken off, or its InferenceModel was deleted and its
            // children kept. Out of a cache it does not say who wrote it.
            Self::Model(model) => {
                is_left_to(found, &model.name_any()) || (controller(found).is_none() && was_written_by_us(found))
            }
            Self::Namespace(_) => is_uncontrolled(found) || (controller(found).is_none() && was_written_by_us(found)),
        }
    }

    /// Whether it belongs to an InferenceModel that had this name.
    #[must_use]
    pub fn had<K: Resource>(&self, found: &K) -> bool {
        let Self::Model(model) = self else { return false };
        controller(found)
            .is_some_and(|owner| is_model(&owner.api_version, &owner.kind) && owner.name == model.name_any())
    }

    /// What is told of an object of somebody else under a name of ours.
    #[must_use]
    pub fn belongs_to_another<K: Resource>(&self, kind: &str, found: &K) -> Refusal {
        let owner = match controller(found) {
            Some(owner) => format!("belongs to {} {}", owner.kind, owner.name),
            None => "was not made by Ortolan".to_owned(),
        };
        let remedy = match self {
            Self::Model(_) => "give this InferenceModel another name",
            Self::Namespace(_) => "set spec.monitoring so that none is wanted",
        };
        let message =
            format!("{kind} {} {owner}, so it is left alone. Remove or rename it, or {remedy}", found.name_any());
        Refusal { reason: accepted::NAME_CONFLICT, message }
    }
}

fn was_written_by_us<K: Resource>(found: &K) -> bool {
    let by_us = |entry: &ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(names::FIELD_MANAGER) && entry.operation.as_deref() == Some("Apply")
    };
    found.meta().managed_fields.iter().flatten().any(by_us)
}

/// Whether an object is one that we wrote and that nobody controls, as what namespaces share and what outlived its InferenceModel, as
/// far as the object itself tells: caches do not keep who wrote it.
#[must_use]
pub fn is_uncontrolled<K: Resource>(found: &K) -> bool {
    controller(found).is_none() && found.annotations().contains_key(names::APPLIED_ANNOTATION)
}

fn controller<K: Resource>(found: &K) -> Option<&OwnerReference> {
    found.meta().owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}
