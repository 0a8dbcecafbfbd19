//! Parts of the serving config inside the resource.

use std::{borrow::Cow, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::serving::{self, Faults, Layer, ModelOptions, ServerConfig};

/// A part of the serving config as the user wrote it, with the schema of `T` and the keys of a config file.
///
/// It stays a tree of keys until [`parse`](AsWritten::<ModelOptions>::parse) reads it: a schema of the API server cannot
/// say all that the config's parser checks, and what cannot be read of an object is not known at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AsWritten<T> {
    /// The keys that are set, and what they are set to.
    pub keys: Map<String, Value>,
    #[serde(skip)]
    schema: PhantomData<T>,
}

impl<T> AsWritten<T> {
    /// A part with these keys.
    #[must_use]
    pub fn new(keys: Map<String, Value>) -> Self {
        Self { keys, schema: PhantomData }
    }
}

impl<T> Default for AsWritten<T> {
    fn default() -> Self {
        Self::new(Map::new())
    }
}

impl AsWritten<ModelOptions> {
    /// Reads the options with the parser that the pod has for `model.yaml`.
    ///
    /// # Errors
    /// All [`Faults`], with paths below `options`.
    pub fn parse(&self) -> Result<ModelOptions, Faults> {
        serving::parse_options(&layer(&self.keys), &ModelOptions::default())
    }
}

impl AsWritten<ServerConfig> {
    /// Reads the settings with the parser of the config file.
    ///
    /// # Errors
    /// All [`Faults`], with paths below `config`.
    pub fn parse(&self) -> Result<ServerConfig, Faults> {
        let config = serving::parse(&[layer(&json!({"server": self.keys}))]);
        config.map(|config| config.server).map_err(|mut faults| {
            for fault in &mut faults.0 {
                fault.path = fault.path.strip_prefix("server.").unwrap_or_default().to_owned();
            }
            faults
        })
    }
}

/// JSON is YAML, and the API server has parsed it already: there is no fault of syntax to be named after its origin.
fn layer(tree: &impl Serialize) -> Layer {
    Layer::yaml("", serde_json::to_string(tree).unwrap_or_default())
}

impl<T: JsonSchema> JsonSchema for AsWritten<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("AsWritten{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    /// That of `T` without its defaults: what is left out is filled in where the config is read, not in the object.
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = T::json_schema(generator);
        schemars::transform::transform_subschemas(&mut without_default, &mut schema);
        schema
    }
}

fn without_default(schema: &mut Schema) {
    schema.remove("default");
    schemars::transform::transform_subschemas(&mut without_default, schema);
}
