//! What a Vault says, as far as it matters here.

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use std::{collections::BTreeMap, fmt};
use zeroize::Zeroizing;

/// A field of a secret.
pub(super) enum Field {
    Text(Zeroizing<String>),
    Other,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand: what is derived for either of two keeps copies that nobody wipes.
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field of a secret")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Field, E> {
                Ok(Field::Text(Zeroizing::new(text.to_owned())))
            }
            fn visit_string<E: Error>(self, text: String) -> Result<Field, E> {
                Ok(Field::Text(Zeroizing::new(text)))
            }
            fn visit_bool<E: Error>(self, _: bool) -> Result<Field, E> {
                Ok(Field::Other)
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<Field, E> {
                Ok(Field::Other)
            }
            fn visit_u64<E: Error>(self, _: u64) -> Result<Field, E> {
                Ok(Field::Other)
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<Field, E> {
                Ok(Field::Other)
            }
            fn visit_unit<E: Error>(self) -> Result<Field, E> {
                Ok(Field::Other)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Field, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Field::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Field::Other)
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// The answer to `GET /v1/MOUNT/data/PATH`.
#[derive(Deserialize)]
pub(super) struct SecretAnswer {
    pub data: SecretData,
}

#[derive(Deserialize)]
pub(super) struct SecretData {
    pub data: BTreeMap<String, Field>,
    #[serde(default)]
    pub metadata: Metadata,
}

#[derive(Deserialize, Default)]
pub(super) struct Metadata {
    #[serde(default)]
    pub version: Option<u64>,
}

/// The answer to a login or a renewal.
#[derive(Deserialize)]
pub(super) struct AuthAnswer {
    pub auth: Auth,
}

#[derive(Deserialize)]
pub(super) struct Auth {
    #[serde(default)]
    pub client_token: Option<blockd_api::Secret>,
    #[serde(default)]
    pub lease_duration: u64,
    #[serde(default)]
    pub renewable: bool,
}

/// The answer to `GET /v1/auth/token/lookup-self`.
#[derive(Deserialize)]
pub(super) struct LookupAnswer {
    pub data: Lookup,
}

#[derive(Deserialize)]
pub(super) struct Lookup {
    /// Seconds; 0 for a token that does not end.
    #[serde(default)]
    pub ttl: u64,
    #[serde(default)]
    pub renewable: bool,
}

/// The answer to `GET /v1/sys/health`.
#[derive(Deserialize)]
pub(super) struct Health {
    #[serde(default)]
    pub version: Option<String>,
}

/// What is wrong, in its words. They are looked into, never shown.
#[derive(Deserialize, Default)]
pub(super) struct Errors {
    #[serde(default)]
    pub errors: Vec<String>,
}
