//! InferenceModels as they come from the API server, each read by itself.
//!
//! A list is read as a whole, and a watch ends with an event that cannot be read: without this, one object that our types do not
//! fit would hide all others. The schema lets through none but those with an open field nested deeper than `serde_json` goes, and what
//! was stored under another schema. Of such an object all is kept that can be read, and the rest is in
//! [`unread`](crds::resource::InferenceModelSpec::unread), for which it is refused.

use std::{borrow::Cow, collections::BTreeMap};

use crds::{
    resource::{InferenceModel, InferenceModelSpec},
    serving::Fault,
};
use kube::{Resource, api::ObjectMeta, core::NamespaceResourceScope, runtime::watcher::Event};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::{Map, Value, value::RawValue};

/// An InferenceModel, or what can be read of it.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Salvaged(pub InferenceModel);

/// The same event with what is inside.
pub fn unwrapped(event: Event<Salvaged>) -> Event<InferenceModel> {
    match event {
        Event::Apply(Salvaged(model)) => Event::Apply(model),
        Event::Delete(Salvaged(model)) => Event::Delete(model),
        Event::InitApply(Salvaged(model)) => Event::InitApply(model),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    }
}

impl<'de> Deserialize<'de> for Salvaged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let whole = serde_json::from_str(text.get());
        whole.or_else(|_| salvage(text.get())).map(Self).map_err(D::Error::custom)
    }
}

/// The fields of an object, each as text.
type Fields = BTreeMap<String, Box<RawValue>>;

fn salvage(text: &str) -> serde_json::Result<InferenceModel> {
    let object: Fields = serde_json::from_str(text)?;
    let of = |field: &str| object.get(field).map_or("{}", |text| text.get());
    let metadata: ObjectMeta = serde_json::from_str(&without_managed_fields(of("metadata"))?)?;
    let spec = spec(of("spec"))?;
    Ok(InferenceModel { metadata, spec, status: serde_json::from_str(of("status")).ok() })
}

/// They are nested as deep as what they speak of, and nobody reads them.
fn without_managed_fields(metadata: &str) -> serde_json::Result<String> {
    let mut fields: Fields = serde_json::from_str(metadata)?;
    fields.remove("managedFields");
    serde_json::to_string(&fields)
}

/// Field by field; those that cannot be read are left out, and noted.
fn spec(text: &str) -> serde_json::Result<InferenceModelSpec> {
    let fields: Fields = serde_json::from_str(text).unwrap_or_default();
    let mut read = Map::from_iter([("models".to_owned(), Value::Array(Vec::new()))]);
    let mut unread = Vec::new();
    for (name, text) in fields {
        let with_it = serde_json::from_str::<Value>(text.get()).and_then(|value| {
            let mut fields = read.clone();
            fields.insert(name.clone(), value);
            serde_json::from_value::<InferenceModelSpec>(fields.clone().into()).map(|_| fields)
        });
        match with_it {
            Ok(fields) => read = fields,
            Err(error) => unread.push(fault(&name, &error)),
        }
    }
    let spec: InferenceModelSpec = serde_json::from_value(read.into())?;
    Ok(InferenceModelSpec { unread, ..spec })
}

fn fault(field: &str, error: &serde_json::Error) -> Fault {
    // It came as JSON, so there is no other fault of that kind.
    let message = if error.is_syntax() {
        "expected a field nested less than 128 deep".to_owned()
    } else {
        format!("it cannot be read: {error}")
    };
    Fault { path: format!("spec.{field}"), origin: String::new(), message }
}

impl Resource for Salvaged {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(dynamic: &()) -> Cow<'_, str> {
        InferenceModel::kind(dynamic)
    }

    fn group(dynamic: &()) -> Cow<'_, str> {
        InferenceModel::group(dynamic)
    }

    fn version(dynamic: &()) -> Cow<'_, str> {
        InferenceModel::version(dynamic)
    }

    fn plural(dynamic: &()) -> Cow<'_, str> {
        InferenceModel::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

#[cfg(test)]
mod tests {
    use kube::{
        ResourceExt,
        core::{ObjectList, WatchEvent},
    };

    use super::*;

    /// As the API server has it: what is noted of who set a field is nested as deep as the field.
    fn object(name: &str, spec: &str, depth: usize) -> String {
        let fields = format!("{}1{}", r#"{"f:a":"#.repeat(depth), "}".repeat(depth));
        let managed = format!(r#"[{{"manager":"kubectl","operation":"Apply","fieldsV1":{fields}}}]"#);
        let metadata = format!(r#"{{"name":"{name}","namespace":"n","uid":"u","managedFields":{managed}}}"#);
        let status = r#"{"observedGeneration":3}"#;
        format!(
            r#"{{"apiVersion":"ortolan.dev/v1alpha1","kind":"InferenceModel","metadata":{metadata},"spec":{spec},"status":{status}}}"#
        )
    }

    fn nested(depth: usize) -> String {
        let open = format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        format!(r#"{{"models":[],"replicas":5,"suspend":true,"podTemplate":{open}}}"#)
    }

    #[test]
    fn one_that_is_nested_too_deep_hides_no_other_and_keeps_what_can_be_read() {
        let (deep, plain) = (object("deep", &nested(5000), 5000), object("plain", r#"{"models":[]}"#, 1));
        let list = format!(r#"{{"kind":"InferenceModelList","metadata":{{}},"items":[{deep},{plain}]}}"#);
        let list: ObjectList<Salvaged> = serde_json::from_str(&list).unwrap();
        let WatchEvent::Modified(event) =
            serde_json::from_str::<WatchEvent<Salvaged>>(&format!(r#"{{"type":"MODIFIED","object":{deep}}}"#)).unwrap()
        else {
            panic!("another event")
        };
        let [of_list, plain] = &list.items[..] else { panic!("{} items", list.items.len()) };
        for Salvaged(model) in [of_list, &event] {
            assert_eq!(
                (model.name_any(), model.uid(), model.spec.replicas),
                ("deep".to_owned(), Some("u".to_owned()), 5)
            );
            assert_eq!((model.spec.suspend, &model.spec.pod_template), (true, &None));
            assert_eq!(model.status.as_ref().unwrap().observed_generation, Some(3));
            let [fault] = &model.spec.unread[..] else { panic!("{:?}", model.spec.unread) };
            assert_eq!(fault.to_string(), "spec.podTemplate: expected a field nested less than 128 deep");
        }
        assert_eq!((plain.0.name_any(), plain.0.spec.unread.len()), ("plain".to_owned(), 0));
    }

    #[test]
    fn what_an_older_schema_let_through_is_left_out_field_by_field() {
        let spec = r#"{"models":[],"replicas":"many","suspend":true,"rollout":7}"#;
        let Salvaged(model) = serde_json::from_str(&object("old", spec, 1)).unwrap();
        let unread: Vec<_> = model.spec.unread.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!((unread, model.spec.replicas, model.spec.suspend), (vec!["spec.replicas", "spec.rollout"], 1, true));
    }
}
