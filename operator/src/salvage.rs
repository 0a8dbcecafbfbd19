//! InferenceModels as they come from the API server, each read by itself.
//!
//! A list is read as a whole, and a watch ends with an event that cannot be read: without this, one object that our types do not
//! fit would hide all others. The schema lets through none but those with an open field nested deeper than `serde_json` goes, and what
//! was stored under another schema. Of such an object all is kept that can be read, and the rest is in
//! [`unread`](crds::resource::InferenceModelSpec::unread), for which it is refused.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use crds::{
    resource::{InferenceModel, InferenceModelSpec},
    serving::Fault,
};
use kube::{Resource, api::ObjectMeta, core::NamespaceResourceScope, runtime::watcher::Event};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// A field is nested at most so deep. `serde_json` goes to 127, of which a list and its objects take five.
const DEEPEST: usize = 100;

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
        let Object { mut metadata, spec, status } = Object::deserialize(deserializer)?;
        // They are nested as deep as what they speak of, and nobody reads them.
        metadata.remove("managedFields");
        let metadata = ObjectMeta::deserialize(readable(metadata)).map_err(D::Error::custom)?;
        let spec = self::spec(spec).map_err(D::Error::custom)?;
        let status = status.0.and_then(|status| serde_json::from_value(status).ok());
        Ok(Self(InferenceModel { metadata, spec, status }))
    }
}

/// An object by its fields.
#[derive(Deserialize)]
struct Object {
    metadata: Fields,
    #[serde(default)]
    spec: Fields,
    #[serde(default)]
    status: Bounded,
}

type Fields = BTreeMap<String, Bounded>;

/// A value, or none where it is nested deeper than [`DEEPEST`].
#[derive(Clone, Default)]
struct Bounded(Option<Value>);

impl<'de> Deserialize<'de> for Bounded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Nested { at_most: DEEPEST }.deserialize(deserializer).map(Self)
    }
}

/// Reads a value that is nested at most so deep; what is deeper is passed over.
#[derive(Clone, Copy)]
struct Nested {
    at_most: usize,
}

impl<'de> DeserializeSeed<'de> for Nested {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nested {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_unit<E>(self) -> Result<Option<Value>, E> {
        Ok(Some(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Option<Value>, E> {
        Ok(Some(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Option<Value>, E> {
        Ok(Some(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Option<Value>, E> {
        Ok(Some(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Option<Value>, E> {
        Ok(Some(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Option<Value>, E> {
        Ok(Some(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Option<Value>, A::Error> {
        let Some(at_most) = self.at_most.checked_sub(1) else {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(None);
        };
        let mut read = Some(Vec::new());
        while let Some(item) = items.next_element_seed(Self { at_most })? {
            read = read.zip(item).map(|(mut read, item)| {
                read.push(item);
                read
            });
        }
        Ok(read.map(Value::Array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Option<Value>, A::Error> {
        let Some(at_most) = self.at_most.checked_sub(1) else {
            while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(None);
        };
        let mut read = Some(Map::new());
        while let Some(name) = fields.next_key::<String>()? {
            let field = fields.next_value_seed(Self { at_most })?;
            read = read.zip(field).map(|(mut read, field)| {
                read.insert(name, field);
                read
            });
        }
        Ok(read.map(Value::Object))
    }
}

/// Those that are not nested too deep.
fn readable(fields: Fields) -> Map<String, Value> {
    fields.into_iter().filter_map(|(name, Bounded(value))| Some((name, value?))).collect()
}

/// The spec. Where not all of it can be read, field by field: those that cannot are left out, and noted.
fn spec(fields: Fields) -> serde_json::Result<InferenceModelSpec> {
    let is_too_deep = |(name, field): (&String, &Bounded)| field.0.is_none().then(|| name.clone());
    let too_deep: Vec<String> = fields.iter().filter_map(is_too_deep).collect();
    let fields = readable(fields);
    if too_deep.is_empty()
        && let Ok(spec) = InferenceModelSpec::deserialize(&fields)
    {
        return Ok(spec);
    }
    let deep = |name: &String| fault(name, format!("expected a field nested at most {DEEPEST} deep"));
    let mut unread: Vec<Fault> = too_deep.iter().map(deep).collect();
    if !fields.contains_key("models") && !too_deep.iter().any(|name| name == "models") {
        unread.push(fault("models", "expected a list".to_owned()));
    }
    let mut read = Map::from_iter([("models".to_owned(), Value::Array(Vec::new()))]);
    for (name, value) in fields {
        let mut with_it = read.clone();
        with_it.insert(name.clone(), value);
        match InferenceModelSpec::deserialize(&with_it) {
            Ok(_) => read = with_it,
            Err(error) => unread.push(fault(&name, format!("it cannot be read: {error}"))),
        }
    }
    Ok(InferenceModelSpec { unread, ..InferenceModelSpec::deserialize(&read)? })
}

fn fault(field: &str, message: String) -> Fault {
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
            assert_eq!(fault.to_string(), "spec.podTemplate: expected a field nested at most 100 deep");
        }
        assert_eq!((plain.0.name_any(), plain.0.spec.unread.len()), ("plain".to_owned(), 0));
    }

    #[test]
    fn a_field_may_be_nested_a_hundred_deep_wherever_its_object_comes_from() {
        for (depth, is_read) in [(DEEPEST, true), (DEEPEST + 1, false)] {
            let item = object("deep", &nested(depth), depth);
            let list = format!(r#"{{"kind":"InferenceModelList","metadata":{{}},"items":[{item}]}}"#);
            let list: ObjectList<Salvaged> = serde_json::from_str(&list).unwrap();
            assert_eq!(list.items[0].0.spec.pod_template.is_some(), is_read, "{depth}");
        }
    }

    #[test]
    fn one_that_can_be_read_is_read_as_it_is() {
        let spec =
            r#"{"models":[{"name":"m","source":{"uri":"file:///a"}}],"podTemplate":{"a":[1,-2,0.5,null,true,"b"]}}"#;
        let text = object("plain", spec, 1);
        let Salvaged(mut model) = serde_json::from_str(&text).unwrap();
        model.metadata.managed_fields = serde_json::from_str::<InferenceModel>(&text).unwrap().metadata.managed_fields;
        assert_eq!(model, serde_json::from_str(&text).unwrap());
    }

    #[test]
    fn without_models_there_is_something_unread() {
        let Salvaged(model) = serde_json::from_str(&object("bare", r#"{"replicas":3}"#, 1)).unwrap();
        assert_eq!(
            (model.spec.replicas, model.spec.unread[0].to_string()),
            (3, "spec.models: expected a list".to_owned())
        );
    }

    #[test]
    fn what_an_older_schema_let_through_is_left_out_field_by_field() {
        let spec = r#"{"models":[],"replicas":"many","suspend":true,"rollout":7}"#;
        let Salvaged(model) = serde_json::from_str(&object("old", spec, 1)).unwrap();
        let unread: Vec<_> = model.spec.unread.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!((unread, model.spec.replicas, model.spec.suspend), (vec!["spec.replicas", "spec.rollout"], 1, true));
    }
}
