//! Changes of a store: authentication and connection, but never its place.

use crate::{
    error::ServiceError,
    repositories::providers::{given, given_secret, invalid, kind},
};
use blockd_api::{
    ErrorCode, SecretInput,
    credential_update::{NewAccess, UpdateCredential},
    credentials::{AssumedRole, AzureAuth, ProviderKind},
};
use blockd_catalog::{AzureAuthRow, ProviderRow, StoreRow, SwiftAuthRow};

/// Change of the secret of a store.
#[derive(Debug)]
pub enum KeyChange {
    /// Unchanged.
    Stays,
    /// None is needed any more.
    Dropped,
    /// Replaced.
    To(SecretInput),
}

/// Returns the hint for a store error with new settings.
pub fn hint(kind: ProviderKind, code: ErrorCode) -> Option<&'static str> {
    let keys = match kind {
        ProviderKind::S3 => {
            "look at --s3-access-key and --s3-secret-key, or --use-iam, and at --s3-role-arn and --s3-external-id if a role is taken"
        }
        ProviderKind::Azure => "look at --azure-account-key, --azure-sas-token or --use-iam",
        ProviderKind::Google => {
            "look at --google-json-key-file, or --use-iam, and at the roles of that account"
        }
        ProviderKind::Swift => "look at --swift-key or --swift-token",
        _ => return None,
    };
    match code {
        // In some stores each account has its own buckets.
        ErrorCode::StoreUnauthorized | ErrorCode::BucketMissing => Some(keys),
        ErrorCode::StoreUnreachable => {
            Some("look at --proxy and --ca-certificate, and whether the server runs")
        }
        _ => None,
    }
}

/// Applies the requested changes to the stored settings, and returns the change of the secret.
///
/// # Errors
/// A setting does not belong to this provider, contradicts another one, or is missing.
pub fn renew(store: &mut StoreRow, request: &UpdateCredential) -> Result<KeyChange, ServiceError> {
    let kept = kind(&store.provider);
    if kept == ProviderKind::Local && (request.proxy.is_some() || request.ca_certificates.is_some()) {
        return invalid("--proxy and --ca-certificate are for stores on the network, a directory has none");
    }
    let or_none = |text: &String| Some(text.clone()).filter(|text| !text.trim().is_empty());
    if let Some(proxy) = &request.proxy {
        store.connection.proxy = or_none(proxy);
    }
    if let Some(certificates) = &request.ca_certificates {
        store.connection.ca_certificates = or_none(certificates);
    }
    if let Some(class) = &request.storage_class {
        let ProviderRow::S3 { storage_class, .. } = &mut store.provider else {
            return invalid(format!(
                "--s3-storage-class is for a bucket of S3, and these credentials are for {kept}"
            ));
        };
        *storage_class = or_none(class);
    }
    let Some(access) = request.access.clone() else { return Ok(KeyChange::Stays) };
    match (&mut store.provider, access) {
        (
            ProviderRow::S3 { access_key: id, use_iam: by_machine, role: taken, .. },
            NewAccess::S3 { access_key, secret_key, use_iam, role },
        ) => {
            if let Some(role) = role {
                *taken = Some(role).filter(|role: &AssumedRole| !role.arn.trim().is_empty());
            }
            s3_key(id, by_machine, access_key, secret_key, use_iam)
        }
        (ProviderRow::Azure { auth: kept, .. }, NewAccess::Azure { auth }) => Ok(match auth {
            AzureAuth::AccountKey { key } => {
                *kept = AzureAuthRow::AccountKey;
                KeyChange::To(given_secret("--azure-account-key", Some(key))?)
            }
            AzureAuth::Sas { token } => {
                *kept = AzureAuthRow::Sas;
                KeyChange::To(given_secret("--azure-sas-token", Some(token))?)
            }
            AzureAuth::ManagedIdentity { client_id } => {
                *kept = AzureAuthRow::ManagedIdentity { client_id };
                KeyChange::Dropped
            }
        }),
        (ProviderRow::Google { use_iam: by_machine, .. }, NewAccess::Google { json_key, use_iam }) => {
            if use_iam && json_key.is_some() {
                return both("--google-json-key-file");
            }
            *by_machine = use_iam;
            Ok(match use_iam {
                true => KeyChange::Dropped,
                false => KeyChange::To(given_secret("--google-json-key-file", json_key)?),
            })
        }
        (ProviderRow::Swift { auth, .. }, NewAccess::Swift { key, token }) => {
            let is_token = matches!(auth, SwiftAuthRow::Token { .. });
            match (is_token, key, token) {
                (true, None, token) => Ok(KeyChange::To(given_secret("--swift-token", token)?)),
                (false, key, None) => Ok(KeyChange::To(given_secret("--swift-key", key)?)),
                (true, ..) => invalid(
                    "--swift-key is for a user, and these credentials have a token in its place: give --swift-token",
                ),
                (false, ..) => invalid(
                    "--swift-token takes the place of a user, and these credentials have one: give --swift-key, or make other credentials",
                ),
            }
        }
        (_, other) => {
            let meant = match other {
                NewAccess::S3 { .. } => ProviderKind::S3,
                NewAccess::Azure { .. } => ProviderKind::Azure,
                NewAccess::Google { .. } => ProviderKind::Google,
                NewAccess::Swift { .. } => ProviderKind::Swift,
            };
            invalid(format!(
                "keys of {meant} are given, and these credentials are for {kept}: another place needs credentials of its own"
            ))
        }
    }
}

fn both<T>(flag: &str) -> Result<T, ServiceError> {
    invalid(format!("--use-iam and {flag} are both given: the identity of the machine takes the place of it"))
}

fn s3_key(
    id: &mut String,
    by_machine: &mut bool,
    access_key: Option<String>,
    secret_key: Option<SecretInput>,
    use_iam: bool,
) -> Result<KeyChange, ServiceError> {
    let has_key = access_key.is_some() || secret_key.is_some();
    if use_iam {
        if has_key {
            return both("an access key");
        }
        (*by_machine, *id) = (true, String::new());
        return Ok(KeyChange::Dropped);
    }
    if !has_key {
        return Ok(KeyChange::Stays);
    }
    // Replacing the machine identity needs both.
    if let Some(new) = access_key.or_else(|| by_machine.then(String::new)) {
        *id = given("--s3-access-key", new)?;
    }
    if secret_key.is_none() && !*by_machine {
        return Ok(KeyChange::Stays);
    }
    *by_machine = false;
    Ok(KeyChange::To(given_secret("--s3-secret-key", secret_key)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_api::{Secret, credentials::Connection};

    fn store(provider: ProviderRow) -> StoreRow {
        StoreRow { provider, connection: Connection::default() }
    }

    fn s3(use_iam: bool) -> StoreRow {
        store(ProviderRow::S3 {
            endpoint: "h:1".into(),
            region: "r".into(),
            bucket: "b".into(),
            access_key: if use_iam { String::new() } else { "old".into() },
            disable_ssl: false,
            disable_path_style: false,
            use_iam,
            role: None,
            storage_class: Some("STANDARD_IA".into()),
        })
    }

    fn planted() -> Option<SecretInput> {
        Some(Secret::new("planted".into()).into())
    }

    fn of(access: NewAccess) -> UpdateCredential {
        UpdateCredential { access: Some(access), ..UpdateCredential::default() }
    }

    fn s3_access(access_key: Option<&str>, secret_key: Option<SecretInput>, use_iam: bool) -> NewAccess {
        NewAccess::S3 { access_key: access_key.map(str::to_owned), secret_key, use_iam, role: None }
    }

    fn refused(mut store: StoreRow, request: &UpdateCredential) -> String {
        renew(&mut store, request).unwrap_err().to_string()
    }

    #[test]
    fn key_and_machine_identity_replace_each_other() {
        let mut row = s3(false);
        let change = renew(&mut row, &of(s3_access(None, None, true))).unwrap();
        assert!(matches!(change, KeyChange::Dropped), "{change:?}");
        let shown = |row: &StoreRow| match &row.provider {
            ProviderRow::S3 { access_key, use_iam, .. } => (access_key.clone(), *use_iam),
            other => panic!("{other:?}"),
        };
        assert_eq!(shown(&row), (String::new(), true));
        // Half a key is none.
        for half in [s3_access(Some("new"), None, false), s3_access(None, planted(), false)] {
            let message = refused(row.clone(), &of(half));
            assert!(message.contains("is empty") && !message.contains("planted"), "{message}");
        }
        let change = renew(&mut row, &of(s3_access(Some("new"), planted(), false))).unwrap();
        assert!(matches!(change, KeyChange::To(_)));
        assert_eq!(shown(&row), ("new".to_owned(), false));
        assert!(matches!(renew(&mut row, &of(s3_access(Some("id"), None, false))), Ok(KeyChange::Stays)));
        assert_eq!(shown(&row), ("id".to_owned(), false));
        assert!(refused(row, &of(s3_access(Some("new"), None, true))).contains("--use-iam"));
    }

    #[test]
    fn settings_of_other_providers_are_refused() {
        let local = || store(ProviderRow::Local { path: "/srv".into() });
        let message = refused(local(), &of(s3_access(Some("new"), planted(), false)));
        assert!(message.contains("keys of s3") && message.contains("local"), "{message}");
        let proxy = UpdateCredential { proxy: Some("http://p:1".into()), ..UpdateCredential::default() };
        assert!(refused(local(), &proxy).contains("--proxy"));
        let class = UpdateCredential { storage_class: Some("COLD".into()), ..UpdateCredential::default() };
        assert!(refused(local(), &class).contains("--s3-storage-class"));
        let auth = SwiftAuthRow::V1 { auth_url: "u".into(), user: "u".into() };
        let swift = || store(ProviderRow::Swift { container: "c".into(), auth: auth.clone() });
        let token = of(NewAccess::Swift { key: None, token: planted() });
        assert!(refused(swift(), &token).contains("give --swift-key"));
        let key = of(NewAccess::Swift { key: planted(), token: None });
        assert!(matches!(renew(&mut swift(), &key), Ok(KeyChange::To(_))));
    }

    #[test]
    fn empty_setting_is_removed() {
        let mut row = s3(false);
        row.connection.proxy = Some("http://p:1".into());
        let request = UpdateCredential {
            storage_class: Some(String::new()),
            proxy: Some(String::new()),
            ..UpdateCredential::default()
        };
        assert!(matches!(renew(&mut row, &request), Ok(KeyChange::Stays)));
        let ProviderRow::S3 { storage_class, .. } = &row.provider else { panic!("{row:?}") };
        assert_eq!((storage_class, &row.connection.proxy), (&None, &None));
    }
}
