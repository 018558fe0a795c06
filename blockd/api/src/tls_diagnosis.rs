//! Lasting failures of TLS and their remedies.

use rustls::{AlertDescription, CertificateError, Error};
use std::io;

/// Returns the remedy of a lasting TLS failure: retries fail until it is applied.
pub(crate) fn advice(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    advice_of(rustls_error(error)?)
}

/// Returns the TLS error inside of another error.
fn rustls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // The inner error of an I/O error is not in its source chain.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

fn advice_of(error: &Error) -> Option<&'static str> {
    use AlertDescription as Alert;

    Some(match error {
        Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "check --ca: no CA certificate in that file has issued the certificate of blockd"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "check --endpoint: the certificate of blockd is for another name; use a name of the certificate, or issue one for this name"
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                "renew the certificate of blockd (control.certificate), or check the clocks of both hosts"
            }
            _ => "check the certificate of blockd (control.certificate) and --ca",
        },
        Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::NoCertificate
            | Alert::AccessDenied
            | Alert::DecryptError,
        ) => {
            "check --cert and --key: blockd refuses that certificate; it must be issued by a CA in control.client_ca, valid now, and not revoked"
        }
        Error::InvalidMessage(_) | Error::AlertReceived(Alert::ProtocolVersion | Alert::HandshakeFailure) => {
            "check --endpoint: it must be the address of the control API of blockd (control.listen)"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: Error) -> Option<&'static str> {
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        advice(&error)
    }

    #[test]
    fn lasting_tls_failures_are_recognised() {
        for (error, flag) in [
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "--ca"),
            (Error::InvalidCertificate(CertificateError::NotValidForName), "--endpoint"),
            (Error::InvalidCertificate(CertificateError::Expired), "control.certificate"),
            (Error::AlertReceived(AlertDescription::UnknownCA), "--cert and --key"),
            (Error::AlertReceived(AlertDescription::CertificateExpired), "--cert and --key"),
            (Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType), "--endpoint"),
        ] {
            let text = error.to_string();
            assert!(of(error).is_some_and(|advice| advice.contains(flag)), "{text}");
        }
        assert_eq!(of(Error::AlertReceived(AlertDescription::InternalError)), None);
        assert_eq!(of(Error::HandshakeNotComplete), None);
        assert_eq!(advice(&io::Error::from(io::ErrorKind::ConnectionReset)), None);
        let wrapped = io::Error::other(io::Error::other(Error::AlertReceived(AlertDescription::UnknownCA)));
        assert!(advice(&wrapped).is_some());
    }

    #[test]
    fn lasting_tls_failure_ends_a_wait() {
        let failed = |source| crate::ClientError::Connect { at: "host:1".to_owned(), source };
        let lasts = failed(io::Error::other(Error::InvalidCertificate(CertificateError::UnknownIssuer)));
        assert!(!lasts.is_retryable() && lasts.hint().is_some_and(|hint| hint.contains("--ca")));
        let passes = failed(io::ErrorKind::ConnectionReset.into());
        assert!(passes.is_retryable() && passes.hint().is_none());
    }
}
