//! Secrets that lie elsewhere: which there are, whether they can be had, and how those do who keep them.

use crate::{CredentialName, SecretRef};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// Reply to `GET /v1/secrets`, by reference. Each of them was just resolved, or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretList {
    /// The references in use.
    pub references: Vec<SecretInUse>,
}

/// A reference, and who needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretInUse {
    /// Where the secret lies.
    pub reference: SecretRef,
    /// What needs it.
    pub used_by: Vec<SecretUse>,
    /// Whether it could be had now.
    pub resolvable: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its version, where whoever keeps it counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// What a secret is needed for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretUse {
    /// Id of the credential.
    pub uuid: Uuid,
    /// Its name.
    pub credential: CredentialName,
    /// What it is there.
    pub purpose: SecretPurpose,
}

/// What a secret is to a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SecretPurpose {
    /// What proves to the store who asks.
    StoreKey,
    /// What opens the keys of the backups.
    EncryptionPassphrase,
}

/// Body of `POST /v1/secrets/check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckSecret {
    /// Where the secret lies.
    pub reference: SecretRef,
}

/// Reply to `POST /v1/secrets/check`: it can be had. Nothing is said of the secret itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretChecked {
    /// Where the secret lies.
    pub reference: SecretRef,
    /// Its version, where whoever keeps it counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// Reply to `GET /v1/secrets/providers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretProviders {
    /// The Vault of the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<VaultStatus>,
    /// Where systemd put the credentials of the daemon, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systemd_dir: Option<PathBuf>,
    /// Below which directory files are taken from.
    pub file_dir: PathBuf,
    /// For how long a fetched secret is used at most when it cannot be fetched again.
    pub cache_s: u64,
}

/// How a Vault does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VaultStatus {
    /// Where it is.
    pub address: String,
    /// The namespace that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What proves who asks, in words, such as `AppRole`.
    pub auth: String,
    /// How it does.
    pub state: VaultState,
    /// Why it is of no use, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it says of its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Until when the token is good if nobody renews it; none if it does not end, or is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_valid_until: Option<Timestamp>,
    /// Whether the token can be renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_renewable: Option<bool>,
}

/// How a Vault does, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum VaultState {
    /// It answers, and takes the token.
    Ready,
    /// It is sealed, or not set up.
    Sealed,
    /// It does not answer.
    Unreachable,
    /// It does not let blockd in.
    Refused,
    /// It fails in another way.
    Failed,
}
