//! JSON schemas of types with a text form; all other types derive theirs.

use crate::{Compression, CompressionLevel, MAX_SECRET_REF_BYTES, Secret, SecretInput, SecretRef};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Secret; never returned by the daemon",
            "type": "string",
            "format": "password",
            "writeOnly": true
        })
    }
}

impl JsonSchema for CompressionLevel {
    fn schema_name() -> Cow<'static, str> {
        "CompressionLevel".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Compression level of stored blocks",
            "type": "string",
            "pattern": "^(none|lz4|zstd(:([1-9]|1[0-9]))?)$",
            "examples": ["zstd:3"]
        })
    }
}

impl JsonSchema for Compression {
    fn schema_name() -> Cow<'static, str> {
        "Compression".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Compression of backups: a level, or `auto`, whose level follows the bottleneck",
            "type": "string",
            "pattern": "^(auto|none|lz4|zstd(:([1-9]|1[0-9]))?)$",
            "examples": ["auto"]
        })
    }
}

impl JsonSchema for SecretRef {
    fn schema_name() -> Cow<'static, str> {
        "SecretRef".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Reference to a secret: a systemd credential, a file, or a program that prints the secret",
            "type": "string",
            "pattern": "^(systemd:[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}|(file|command):/[^\\x00-\\x1f]+)$",
            "maxLength": MAX_SECRET_REF_BYTES,
            "examples": ["command:/etc/blockd/secrets/s3-key"]
        })
    }
}

impl JsonSchema for SecretInput {
    fn schema_name() -> Cow<'static, str> {
        "SecretInput".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (secret, reference) =
            (generator.subschema_for::<Secret>(), generator.subschema_for::<SecretRef>());
        json_schema!({
            "description": "Secret, or a reference to it",
            "anyOf": [secret, {
                "type": "object",
                "properties": { "from": reference },
                "required": ["from"],
                "additionalProperties": false
            }]
        })
    }
}
