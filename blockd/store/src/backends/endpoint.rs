//! Server addresses and secrets in settings.

use blockd_store_config::SecretInput;

/// Host with an optional port, and the use of TLS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ServerAddress {
    host: String,
    pub(super) tls: bool,
}

impl ServerAddress {
    /// Parses `HOST` or `HOST:PORT`, optionally with `http://` or `https://`. The error is one line.
    pub(super) fn parse(given: &str, disable_ssl: bool) -> Result<Self, String> {
        let given = given.trim();
        let (tls, host) = match given.split_once("://") {
            Some(("http", host)) => (false, host),
            Some(("https", _)) if disable_ssl => {
                return Err("the endpoint is https, but TLS is disabled: drop one of the two".into());
            }
            Some(("https", host)) => (true, host),
            Some((scheme, _)) => {
                return Err(format!("the endpoint's scheme {scheme} is neither http nor https"));
            }
            None => (!disable_ssl, given),
        };
        let host = host.trim_end_matches('/');
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'[' | b']');
        if host.is_empty() || !host.bytes().all(plain) {
            return Err("the endpoint is not HOST or HOST:PORT".into());
        }
        let endpoint = Self { host: host.to_owned(), tls };
        // Clients assume a valid URL.
        match reqwest::Url::parse(&endpoint.url()) {
            Ok(_) => Ok(endpoint),
            Err(error) => Err(format!("the endpoint is not HOST or HOST:PORT: {error}")),
        }
    }

    fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// Returns true for an Amazon server.
    pub(super) fn is_amazon(&self) -> bool {
        let name = self.host.split(':').next().unwrap_or_default();
        name.ends_with(".amazonaws.com") || name.ends_with(".amazonaws.com.cn")
    }

    /// Returns the URL without a trailing slash.
    pub(super) fn url(&self) -> String {
        format!("{}://{}", self.scheme(), self.host)
    }

    /// Returns the URL of the host `first.HOST`; fails if that is not a host name, for example below an IP
    /// address.
    pub(super) fn url_of_host_below(&self, first: &str) -> Result<String, String> {
        let url = format!("{}://{first}.{}", self.scheme(), self.host);
        match reqwest::Url::parse(&url) {
            Ok(_) => Ok(url),
            Err(_) => Err(format!(
                "--disable-path-style requires the bucket at {first}.{}, which is not a host name: give the endpoint as a name, or omit the flag",
                self.host
            )),
        }
    }
}

/// Returns the value of a secret; empty if there is none.
pub(super) fn secret_value(secret: Option<&SecretInput>) -> &str {
    secret.and_then(SecretInput::value).map_or("", |secret| secret.expose())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_take_either_style() {
        assert_eq!(ServerAddress::parse("h:1", true).unwrap().url(), "http://h:1");
        assert_eq!(
            ServerAddress::parse("h:1/", true).unwrap().url_of_host_below("bkt").unwrap(),
            "http://bkt.h:1"
        );
        assert_eq!(ServerAddress::parse("http://h", false).unwrap().url(), "http://h");
        let endpoint = ServerAddress::parse("h", false).unwrap();
        assert_eq!(
            (endpoint.url_of_host_below("bkt"), endpoint.url()),
            (Ok("https://bkt.h".into()), "https://h".into())
        );
        for (host, amazons) in [
            ("s3.amazonaws.com", true),
            ("s3.cn-north-1.amazonaws.com.cn:443", true),
            ("amazonaws.com.evil", false),
        ] {
            assert_eq!(ServerAddress::parse(host, false).unwrap().is_amazon(), amazons, "{host}");
        }
        for bad in
            ["", "ftp://h", "h/path", "u@h", "http://", "a b", "h:99999", "h:x", "1.2.3.999", "[::1", "a:1:2"]
        {
            assert!(ServerAddress::parse(bad, false).is_err(), "{bad}");
        }
        assert!(ServerAddress::parse("https://h", true).is_err());
    }

    #[test]
    fn ip_address_endpoint_uses_path_style() {
        for address in ["127.0.0.1:8333", "[::1]:8333", "10.1"] {
            let endpoint = ServerAddress::parse(address, true).unwrap();
            let error = endpoint.url_of_host_below("bkt").unwrap_err();
            assert!(error.contains("--disable-path-style") && error.contains(address), "{error}");
        }
    }
}
