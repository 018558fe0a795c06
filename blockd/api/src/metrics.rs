//! Metrics as text.

use crate::{Client, ClientError, client::CALL_TIMEOUT, paths};
use hyper::Method;

impl Client {
    /// Returns metrics in Prometheus' text format.
    pub async fn metrics_text(&self) -> Result<String, ClientError> {
        let (_, body) = self.fetch(Method::GET, paths::METRICS, bytes::Bytes::new(), CALL_TIMEOUT).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}
