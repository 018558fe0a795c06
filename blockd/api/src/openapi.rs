//! OpenAPI document of the control API, generated from the table of operations and the types.

use crate::{
    ErrorBody, ErrorCode, SCHEMA_VERSION,
    operations::{OPERATIONS, OperationInfo, ReplyBody},
    roles::Role,
};
use schemars::{Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const SCHEMAS: &str = "/components/schemas";

/// Name of the schema of [`SCHEMA_VERSION`].
const VERSION: &str = "SchemaVersion";

const DESCRIPTION: &str = "\
HTTP/1.1 with JSON bodies, over the daemon's unix socket, or over TCP with TLS and a client certificate. \
An empty body stands for `{}`. Requests with unknown fields are refused. All error replies have the body `ErrorBody`. \
JSON replies have `schemaVersion`, and may have fields that are not described here.";

fn roles() -> String {
    let names = Role::names();
    format!("`x-role` is the minimum role of an operation, one of {names}; each includes those before it.")
}

/// Generates the document.
#[must_use]
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = SCHEMAS.into();
    settings.meta_schema = None;
    let mut schemas = settings.into_generator();
    let mut paths = BTreeMap::<&str, Map<String, Value>>::new();
    for operation in OPERATIONS {
        let described = describe(operation, &mut schemas);
        paths
            .entry(operation.path)
            .or_default()
            .insert(operation.method.as_str().to_ascii_lowercase(), described);
    }
    let mut components = schemas.take_definitions(true);
    components.insert(VERSION.to_owned(), version_schema());
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "blockd",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Volumes behind NBD, and backups of them in object storage",
            "description": format!("{DESCRIPTION} {}", roles()),
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" }
        },
        "servers": [{ "url": "/" }],
        "security": [{}, { "certificate": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "certificate": {
                    "type": "mutualTLS",
                    "description": "Over TCP; the daemon's configuration assigns roles to names in certificates"
                }
            },
            "schemas": components
        }
    });
    plain_words(&mut document);
    document
}

/// Returns the schema of the version that each JSON reply has.
pub(crate) fn version_schema() -> Value {
    json!({
        "description": "Version of the document",
        "type": "object",
        "properties": { "schemaVersion": { "const": SCHEMA_VERSION } },
        "required": ["schemaVersion"]
    })
}

/// Returns the document as indented JSON.
#[must_use]
pub fn document_text() -> String {
    format!("{:#}\n", document())
}

fn describe(operation: &OperationInfo, schemas: &mut SchemaGenerator) -> Value {
    let input = (operation.input)(schemas);
    let mut described = json!({
        "operationId": operation_id(operation),
        "summary": operation.summary,
        "tags": [tag(operation.path)],
        "x-role": operation.role.as_str(),
        "responses": responses(operation, schemas),
    });
    let mut parameters = path_parameter(operation, schemas);
    match input {
        Some(schema) if operation.method.has_body() => {
            let required = resolved(&schema, schemas).is_some_and(|schema| schema.contains_key("required"));
            described["requestBody"] =
                json!({ "required": required, "content": { "application/json": { "schema": schema } } });
        }
        Some(query) => parameters.extend(query_parameters(&query, schemas)),
        None => {}
    }
    if !parameters.is_empty() {
        described["parameters"] = parameters.into();
    }
    described
}

/// Returns the operation id, such as `get_volumes_volume_diff` for `GET /v1/volumes/{volume}/diff`.
fn operation_id(operation: &OperationInfo) -> String {
    let words = operation.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let words: Vec<_> = words.filter(|word| *word != "v1").collect();
    format!("{}_{}", operation.method.as_str().to_ascii_lowercase(), words.join("_"))
}

fn tag(path: &str) -> &str {
    match path.strip_prefix("/v1/") {
        Some(rest) => rest.split(['/', '.']).next().unwrap_or(rest),
        None => "watching",
    }
}

fn path_parameter(operation: &OperationInfo, schemas: &mut SchemaGenerator) -> Vec<Value> {
    let name = operation.path.split(['{', '}']).nth(1);
    let parameter = name.zip((operation.parameter)(schemas));
    let described =
        |(name, schema)| json!({ "name": name, "in": "path", "required": true, "schema": schema });
    parameter.map(described).into_iter().collect()
}

/// Returns the fields of a flat query type as parameters.
fn query_parameters(query: &Schema, schemas: &mut SchemaGenerator) -> Vec<Value> {
    let Some(schema) = resolved(query, schemas).cloned() else { return Vec::new() };
    // Its fields become parameters: no reference to the type remains.
    if let Some(name) = reference(query) {
        schemas.definitions_mut().remove(&name);
    }
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let properties = schema.get("properties").and_then(Value::as_object);
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        let mut parameter = json!({ "name": name, "in": "query", "schema": without_null(schema) });
        if let Some(description) = description {
            parameter["description"] = description;
        }
        if required.contains(&name.as_str()) {
            parameter["required"] = true.into();
        }
        parameter
    };
    properties.into_iter().flatten().map(parameter).collect()
}

/// Returns the name that a schema refers to.
fn reference(schema: &Schema) -> Option<String> {
    let target = schema.as_object()?.get("$ref")?.as_str()?;
    target.rsplit_once('/').map(|(_, name)| name.to_owned())
}

/// Resolves a reference.
fn resolved<'a>(schema: &'a Schema, schemas: &'a SchemaGenerator) -> Option<&'a Map<String, Value>> {
    match reference(schema) {
        Some(name) => schemas.definitions().get(&name)?.as_object(),
        None => schema.as_object(),
    }
}

/// Removes `null`: omitted query parameters are absent.
fn without_null(mut schema: Value) -> Value {
    if let Some(kinds) = schema.get_mut("type").and_then(Value::as_array_mut) {
        kinds.retain(|kind| kind != "null");
        if let [kind] = kinds.as_slice() {
            schema["type"] = kind.clone();
        }
    }
    if let Some(object) = schema.as_object_mut() {
        if object.get("default").is_some_and(Value::is_null) {
            object.remove("default");
        }
        let choices = object.get_mut("anyOf").and_then(Value::as_array_mut);
        let only = choices.and_then(|choices| {
            choices.retain(|choice| choice.get("type").is_none_or(|kind| kind != "null"));
            (choices.len() == 1).then(|| choices[0].clone())
        });
        if let Some(only) = only {
            return only;
        }
    }
    schema
}

/// Returns the reply and the errors by HTTP status.
fn responses(operation: &OperationInfo, schemas: &mut SchemaGenerator) -> Value {
    let content = match operation.reply {
        ReplyBody::Json(reply) => json!({ "application/json": { "schema": versioned(&reply(schemas)) } }),
        ReplyBody::ForeignJson => json!({ "application/json": { "schema": { "type": "object" } } }),
        ReplyBody::Text => json!({ "text/plain": { "schema": { "type": "string" } } }),
        ReplyBody::Bytes => json!({ "application/octet-stream": {} }),
    };
    let mut responses = Map::new();
    responses.insert("200".to_owned(), json!({ "description": "Done", "content": content }));
    let mut by_status = BTreeMap::<u16, Vec<ErrorCode>>::new();
    for code in operation.error_codes() {
        let codes = by_status.entry(code.http_status()).or_default();
        if !codes.contains(&code) {
            codes.push(code);
        }
    }
    let error = versioned(&schemas.subschema_for::<ErrorBody>());
    for (status, codes) in by_status {
        let names: Vec<String> = codes.iter().map(|code| format!("`{code}`")).collect();
        let content = json!({ "application/json": { "schema": error } });
        responses.insert(status.to_string(), json!({ "description": names.join(", "), "content": content }));
    }
    responses.into()
}

/// Adds the version of documents to the schema of a reply.
fn versioned(content: &Schema) -> Value {
    json!({ "allOf": [{ "$ref": format!("#{SCHEMAS}/{VERSION}") }, content] })
}

/// Removes rustdoc links from descriptions.
fn plain_words(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == "description" => *text = without_links(text),
                    field => plain_words(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(plain_words),
        _ => {}
    }
}

/// Replaces ``[`crate::a::B`]`` by `` `B` ``, on one line.
fn without_links(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("[`") {
        plain.push_str(before);
        let Some((target, after)) = link.split_once("`]") else {
            plain.push_str("[`");
            rest = link;
            continue;
        };
        let name = target.strip_prefix("crate::").unwrap_or(target);
        let name = name.strip_prefix("Self::").unwrap_or(name);
        // Constants are not fields of a type.
        let modules =
            name.split("::").take_while(|part| part.starts_with(|c: char| c.is_lowercase())).count();
        let parts: Vec<&str> = name.split("::").collect();
        let shown = parts.get(modules..).filter(|parts| !parts.is_empty()).unwrap_or(&parts);
        plain.push_str(&format!("`{}`", shown.join("::")));
        rest = after;
    }
    plain.push_str(rest);
    plain.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn operations_have_roles_and_error_schema() {
        let document = document();
        let mut ids = HashSet::new();
        for operation in OPERATIONS {
            let method = operation.method.as_str().to_ascii_lowercase();
            let described = &document["paths"][operation.path][&method];
            assert_eq!(described["x-role"], operation.role.as_str(), "{operation:?}");
            assert!(ids.insert(described["operationId"].as_str().unwrap()), "{operation:?}");
            for (status, response) in described["responses"].as_object().unwrap() {
                let schema = &response["content"]["application/json"]["schema"];
                let content = &schema["allOf"][1]["$ref"];
                assert!(status == "200" || content == "#/components/schemas/ErrorBody", "{described:#}");
            }
            let names = operation.path.matches('{').count();
            let parameters = described["parameters"].as_array().map_or(0, Vec::len);
            assert!(parameters >= names, "{described:#}");
        }
        let listed: usize =
            document["paths"].as_object().unwrap().values().map(|path| path.as_object().unwrap().len()).sum();
        assert_eq!(listed, OPERATIONS.len());
    }

    #[test]
    fn schema_references_are_complete() {
        fn references(value: &Value, found: &mut HashSet<String>) {
            match value {
                Value::Object(fields) => fields.iter().for_each(|(name, field)| match field {
                    Value::String(target) if name == "$ref" => {
                        found.insert(target.strip_prefix("#/components/schemas/").unwrap().to_owned());
                    }
                    field => references(field, found),
                }),
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = HashSet::new();
        references(&document, &mut found);
        let there: HashSet<String> =
            document["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(found, there);
        // Two types of the same name would get numbers.
        assert!(there.iter().all(|name| !name.ends_with(char::is_numeric)), "{there:?}");
    }

    /// Parts of names of properties that may hold a secret.
    const SECRET_NAMES: [&str; 7] =
        ["passphrase", "password", "secret", "privatekey", "accountkey", "sastoken", "credentialsjson"];

    /// Collects the places of secrets in a schema and in all schemas that it refers to.
    fn find_secrets<'a>(
        value: &'a Value,
        place: &str,
        schemas: &'a Value,
        seen: &mut HashSet<&'a str>,
        found: &mut Vec<String>,
    ) {
        let nested: Vec<(&String, &Value)> = match value {
            Value::Object(fields) => fields.iter().collect(),
            Value::Array(items) => {
                items.iter().for_each(|item| find_secrets(item, place, schemas, seen, found));
                return;
            }
            _ => return,
        };
        if value["writeOnly"] == true || value["format"] == "password" {
            found.push(place.to_owned());
        }
        let target = value["$ref"].as_str().and_then(|target| target.strip_prefix("#/components/schemas/"));
        if let Some(target) = target.filter(|target| seen.insert(target)) {
            assert!(schemas[target].is_object(), "{target}");
            find_secrets(&schemas[target], &format!("{place} {target}"), schemas, seen, found);
        }
        for (name, property) in value["properties"].as_object().into_iter().flatten() {
            // A reference to an external secret is not secret, nor is a flag.
            let is_reference = |schema: &Value| {
                schema["$ref"] == "#/components/schemas/SecretRef" || schema["type"] == "null"
            };
            let any_of = property["anyOf"].as_array();
            let is_harmless = property["type"] == "boolean"
                || is_reference(property)
                || any_of.is_some_and(|schemas| schemas.iter().all(is_reference));
            let name_lower = name.to_ascii_lowercase();
            let is_secret = SECRET_NAMES.iter().any(|part| name_lower.contains(part))
                || ["key", "token"].contains(&name_lower.as_str());
            if is_secret && !is_harmless {
                found.push(format!("{place}.{name}"));
            }
        }
        for (name, nested) in nested {
            find_secrets(nested, &format!("{place}.{name}"), schemas, seen, found);
        }
    }

    /// Returns the places of secrets in all replies of a document.
    fn secrets_in_replies(document: &Value) -> Vec<String> {
        let (schemas, mut found) = (&document["components"]["schemas"], Vec::new());
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let place = format!("{method} {path}");
                find_secrets(&operation["responses"], &place, schemas, &mut HashSet::new(), &mut found);
            }
        }
        found
    }

    #[test]
    fn secrets_are_in_requests_only() {
        let mut document = document();
        assert_eq!(document["components"]["schemas"]["Secret"]["writeOnly"], true);
        let request = document["components"]["schemas"]["CreateCredential"].to_string();
        assert!(request.contains("schemas/SecretInput\""), "{request}");
        assert_eq!(secrets_in_replies(&document), Vec::<String>::new());
        // The check finds a secret by its type and by its name, at any depth.
        let properties = &mut document["components"]["schemas"]["LimitWindow"]["properties"];
        properties["planted"] = json!({ "anyOf": [{ "$ref": "#/components/schemas/SecretInput" }] });
        assert!(secrets_in_replies(&document).iter().any(|place| place.contains("planted")));
        let properties = &mut document["components"]["schemas"]["LimitWindow"]["properties"];
        properties["planted"] = json!({ "type": "object", "properties": { "newPassphrase": {} } });
        assert!(secrets_in_replies(&document).iter().any(|place| place.ends_with("planted.newPassphrase")));
        let properties = &mut document["components"]["schemas"]["LimitWindow"]["properties"];
        let reference_or_secret =
            [json!({ "$ref": "#/components/schemas/SecretRef" }), json!({ "type": "string" })];
        properties["planted"] = json!({ "properties": { "token": { "anyOf": reference_or_secret } } });
        assert!(secrets_in_replies(&document).iter().any(|place| place.ends_with("planted.token")));
    }

    #[test]
    fn descriptions_have_no_links_of_rust() {
        for (text, plain) in [
            ("see [`crate::check_volume_size`]", "see `check_volume_size`"),
            ("at most [`crate::MAX_WAIT_MILLIS`].", "at most `MAX_WAIT_MILLIS`."),
            ("what [`Task::version`] said", "what `Task::version` said"),
            ("a [`crate::cloudsnaps::Cloudsnap`]\nor two", "a `Cloudsnap` or two"),
            ("an open [`", "an open [`"),
        ] {
            assert_eq!(without_links(text), plain);
        }
        assert!(!document_text().contains("[`"));
    }
}
