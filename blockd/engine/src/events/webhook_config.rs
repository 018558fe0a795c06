//! Configuration of webhooks.

use blockd_api::{
    ObjectName, SecretRef,
    events::{EventKind, Severity},
    matches_wildcard,
};
use reqwest::Url;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::{collections::HashSet, fmt};

const MAX_WEBHOOKS: usize = 16;

/// Reason why webhooks are invalid.
#[derive(Debug, thiserror::Error)]
#[error("webhook `{name}`: {what}")]
pub struct WebhookConfigError {
    /// Name of the webhook.
    name: ObjectName,
    /// Cause, without the webhook's URL.
    what: String,
}

/// A receiver of events, which are sent as POST requests with a JSON body.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// Name in the log, in metrics and in `blockctl status`.
    #[serde(deserialize_with = "name")]
    pub name: ObjectName,
    /// Address of the receiver.
    pub url: WebhookUrl,
    /// Kinds of events to deliver; `*` matches any characters. Empty: all.
    #[serde(default)]
    pub kinds: Vec<String>,
    /// Lowest severity to deliver.
    #[serde(default)]
    pub min_severity: Severity,
    /// Secret that signs deliveries: base64, with or without the prefix `whsec_`. Not set: deliveries are not
    /// signed.
    #[serde(default)]
    pub secret: Option<SecretRef>,
    /// Allows a receiver on another host without TLS.
    #[serde(default)]
    pub allow_http: bool,
    /// Timeout of one attempt, in milliseconds.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u64,
}

/// Reads a name; the error names the key.
fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectName, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|error| D::Error::custom(format!("webhook.name: {error}")))
}

fn timeout_ms() -> u64 {
    10_000
}

impl WebhookConfig {
    /// Returns true if events of this kind and severity are delivered.
    pub fn wants(&self, kind: &str, severity: Severity) -> bool {
        let is_meant = self.kinds.is_empty() || self.kinds.iter().any(|meant| matches_wildcard(meant, kind));
        is_meant && severity >= self.min_severity
    }

    fn check(&self) -> Result<(), WebhookConfigError> {
        let wrong = |what: String| Err(WebhookConfigError { name: self.name.clone(), what });
        if self.url.0.scheme() == "http" && !self.allow_http && !self.url.is_loopback() {
            let origin = self.url.origin();
            return wrong(format!(
                "url goes to {origin} without TLS: use https, or allow_http = true if the network is trusted"
            ));
        }
        for pattern in &self.kinds {
            if !EventKind::ALL.iter().any(|kind| matches_wildcard(pattern, kind.as_str())) {
                let known: Vec<_> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
                return wrong(format!(
                    "kinds has `{pattern}`, which matches no kind of event; the kinds are {}",
                    known.join(", ")
                ));
            }
        }
        if !(100..=300_000).contains(&self.timeout_ms) {
            return wrong(format!("timeout_ms is {}, but must be 100 to 300000", self.timeout_ms));
        }
        Ok(())
    }
}

/// Checks all webhooks.
///
/// # Errors
/// One is invalid, two have the same name, or there are too many.
pub fn check(webhooks: &[WebhookConfig]) -> Result<(), WebhookConfigError> {
    if let Some(extra) = webhooks.get(MAX_WEBHOOKS) {
        let what = format!("{} webhooks are too many: configure at most {MAX_WEBHOOKS}", webhooks.len());
        return Err(WebhookConfigError { name: extra.name.clone(), what });
    }
    let mut names = HashSet::new();
    for webhook in webhooks {
        webhook.check()?;
        if !names.insert(&webhook.name) {
            let what = "another webhook has the same name".to_owned();
            return Err(WebhookConfigError { name: webhook.name.clone(), what });
        }
    }
    Ok(())
}

/// URL that may contain a secret: only its origin is ever shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WebhookUrl(Url);

impl WebhookUrl {
    /// Returns the complete URL.
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// Returns scheme, host, and the port unless it is the default.
    pub fn origin(&self) -> String {
        self.0.origin().ascii_serialization()
    }

    /// Returns the URL without the parts that may contain secrets.
    pub fn shown(&self) -> Self {
        let mut url = self.0.clone();
        if !matches!(url.path(), "" | "/") {
            url.set_path("/...");
        }
        url.set_query(None);
        url.set_fragment(None);
        Self(url)
    }

    /// Returns true if the receiver is on this host.
    pub fn is_loopback(&self) -> bool {
        match self.0.host_str() {
            Some("localhost") => true,
            Some(host) => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                host.parse().is_ok_and(|ip: std::net::IpAddr| ip.to_canonical().is_loopback())
            }
            None => false,
        }
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/…", self.origin())
    }
}

impl TryFrom<String> for WebhookUrl {
    type Error = String;

    // The input stays out of the messages: it may be a secret in the wrong form.
    fn try_from(text: String) -> Result<Self, String> {
        let url = Url::parse(&text)
            .map_err(|error| format!("the url of a webhook must look like https://HOST/PATH: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err("the url of a webhook must look like https://HOST/PATH".into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "the url of a webhook must not hold a user or a password: deliveries are signed with `secret`".into(),
            );
        }
        Ok(Self(url))
    }
}

impl From<WebhookUrl> for String {
    fn from(url: WebhookUrl) -> Self {
        url.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_filtered_by_kind_and_severity() {
        let webhook = WebhookConfig {
            name: "ops".parse().unwrap(),
            url: "https://h/".to_owned().try_into().unwrap(),
            kinds: vec!["backup-*".to_owned()],
            min_severity: Severity::Warning,
            secret: None,
            allow_http: false,
            timeout_ms: timeout_ms(),
        };
        let wants = |kind, severity| webhook.wants(kind, severity);
        assert!(wants("backup-failed", Severity::Error) && wants("backup-stopped", Severity::Warning));
        assert!(!wants("backup-done", Severity::Info) && !wants("verify-failed", Severity::Error));
    }
}
