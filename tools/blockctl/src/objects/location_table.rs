//! Table of the fields of backup locations.

use super::document::Document;
use crate::commands::credentials::settings::is_changeable;

/// Secret: a document of the same call, or a directory with a file for each key, as `kubectl create secret
/// generic --from-file` takes it.
pub const SECRET: &str = "secret";
/// Visibility of the backups of other hosts, which are always visible.
pub const SYNC: &str = "sync";
/// Claim that backups are encrypted.
pub const ENCRYPTED: &str = "encrypted";
/// Mark of the location of backups that name none.
pub const DEFAULT: &str = "default";
/// Path of this mark in a document.
pub const DEFAULT_MARK: &str = "location.default";
/// Beginning of the paths of bandwidth limits.
pub const LIMITS: &str = "location.limit";
/// Beginning of the paths of labels and annotations.
pub const METADATA: &str = "metadata.";
/// Provider.
pub const STORE_TYPE: &str = "provider";
/// Fields: setting, path, and keys of a secret.
pub const FIELDS: &[(&str, &str, &str)] = &[
    (STORE_TYPE, "type", ""),
    ("path", "path", ""),
    ("prefix", "prefix", ""),
    (SECRET, "secretConfig", ""),
    (ENCRYPTED, "encrypted", ""),
    (DEFAULT, "default", ""),
    ("encryption-passphrase", "encryptionKey", "encryptionKey"),
    ("proxy", "proxy", ""),
    ("ca-certificate", "caCertificate", ""),
    ("limit-upload", "limitUpload", ""),
    ("limit-download", "limitDownload", ""),
    ("limit-time-zone", "limitTimeZone", ""),
    ("compression", "compression", ""),
    ("deduplicate", "deduplicate", ""),
    ("s3-endpoint", "s3Config.endpoint", "endpoint"),
    ("s3-region", "s3Config.region", "region"),
    ("s3-access-key", "s3Config.accessKeyID", "AWS_ACCESS_KEY_ID accessKeyID"),
    ("s3-secret-key", "s3Config.secretAccessKey", "AWS_SECRET_ACCESS_KEY secretAccessKey"),
    ("use-iam", "s3Config.useIAM", ""),
    ("s3-disable-ssl", "s3Config.disableSSL", "disableSSL"),
    ("disable-path-style", "s3Config.disablePathStyle", ""),
    ("s3-storage-class", "s3Config.storageClass", ""),
    ("s3-role-arn", "s3Config.roleARN", ""),
    ("s3-external-id", "s3Config.externalID", ""),
    ("s3-sts-endpoint", "s3Config.stsEndpoint", ""),
    ("azure-account-name", "azureConfig.storageAccountName", "AZURE_ACCOUNT_NAME storageAccountName"),
    ("azure-account-key", "azureConfig.storageAccountKey", "AZURE_ACCOUNT_KEY storageAccountKey"),
    ("azure-sas-token", "azureConfig.sasToken", ""),
    ("use-iam", "azureConfig.useManagedIdentity", ""),
    ("azure-endpoint", "azureConfig.endpoint", ""),
    ("azure-client-id", "azureConfig.clientID", ""),
    ("google-project-id", "googleConfig.projectID", "GOOGLE_PROJECT_ID projectID"),
    ("google-json-key", "googleConfig.accountKey", "GOOGLE_SERVICE_ACCOUNT_JSON_KEY accountKey"),
    ("use-iam", "googleConfig.useIAM", ""),
    ("google-endpoint", "googleConfig.endpoint", ""),
    ("swift-auth-version", "swiftConfig.authVersion", ""),
    ("swift-auth-url", "swiftConfig.authURL", "ST_AUTH OS_AUTH_URL"),
    ("swift-user", "swiftConfig.user", "ST_USER OS_USERNAME"),
    ("swift-key", "swiftConfig.key", "ST_KEY OS_PASSWORD"),
    ("swift-token", "swiftConfig.token", "OS_AUTH_TOKEN"),
    ("swift-region", "swiftConfig.region", "OS_REGION_NAME"),
    ("swift-project-name", "swiftConfig.project", "OS_PROJECT_NAME"),
    ("swift-tenant-name", "swiftConfig.tenantName", "OS_TENANT_NAME"),
    ("swift-tenant-id", "swiftConfig.tenantID", "OS_TENANT_ID"),
    ("swift-user-domain-name", "swiftConfig.userDomainName", "OS_USER_DOMAIN_NAME"),
    ("swift-project-domain-name", "swiftConfig.projectDomainName", "OS_PROJECT_DOMAIN_NAME"),
    ("swift-storage-url", "swiftConfig.storageURL", "OS_STORAGE_URL"),
    (SYNC, "sync", ""),
];
/// Settings that the daemon does not report.
pub const UNREPORTED: &str = "ca-certificate s3-sts-endpoint azure-client-id swift-auth-version swift-tenant-name swift-tenant-id \
    swift-user-domain-name swift-project-domain-name swift-storage-url";

/// Sections of fields.
pub const SECTIONS: [&str; 4] = ["s3Config", "azureConfig", "googleConfig", "swiftConfig"];

/// Returns the path of the field of an option, and of a converted document its own field, or the key of a
/// secret, if it has one.
fn field_of<'a>(
    option: &str,
    provider: &str,
    document: &'a Document,
) -> Option<(&'static str, Option<&'a str>)> {
    let setting = match option {
        "bucket" => "path",
        option => option.trim_end_matches("-file").trim_end_matches("-from"),
    };
    let section = format!("{provider}Config.");
    let of = |(known, path, _): &&(&str, &str, &str)| {
        *known == setting && (!path.contains('.') || path.starts_with(&section))
    };
    let (_, path, _) = FIELDS.iter().find(of)?;
    Some((path, document.origin(&format!("location.{path}"))))
}

/// Returns settings as the fields of a location, or as the keys of its secret. A converted document has fewer
/// fields: those, or the secret.
pub fn fields_of(settings: &[String], provider: &str, document: &Document) -> Vec<String> {
    let is_converted = document.origin("location").is_some();
    let mut named: Vec<String> = Vec::new();
    for (path, origin) in settings.iter().filter_map(|setting| field_of(setting, provider, document)) {
        let own = origin.or_else(|| (!is_converted).then_some(path));
        named.extend(own.filter(|own| named.iter().all(|one| one != own)).map(str::to_owned));
    }
    if named.is_empty() && is_converted && !settings.is_empty() {
        named.push(document.written("location.secretConfig"));
    }
    named
}

/// Replaces command line options in a message of this program by the fields of a location, which a document
/// may name otherwise.
pub fn with_fields(message: &str, provider: &str, document: &Document) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in message.split(' ') {
        let option = word.trim_start_matches('(').trim_end_matches([',', ':', ';', ')', '.']);
        let is_placeholder = |word: &str| word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase());
        let follows_field = words.last().is_some_and(|last| last.starts_with('\u{1}'));
        if follows_field && is_placeholder(option) {
            // The form of the option's value.
            if let Some(last) = words.last_mut() {
                last.push_str(&word[option.len()..]);
            }
            continue;
        }
        let bare = option.strip_prefix("--");
        let Some((path, origin)) = bare.and_then(|option| field_of(option, provider, document)) else {
            words.push(word.to_owned());
            continue;
        };
        let field = origin.unwrap_or(path);
        drop_alternative(&mut words, field);
        words.push(format!("\u{1}{}", word.replacen(option, field, 1)));
    }
    words.join(" ").replace('\u{1}', "")
}

/// Removes a field from the end of a message, with the conjunction behind it, if it is named again: several
/// options set one field.
fn drop_alternative(words: &mut Vec<String>, field: &str) {
    let Some(last) = words.iter().rposition(|word| word != "or") else { return };
    let is_same = words[last].trim_end_matches(',').strip_prefix('\u{1}') == Some(field);
    if is_same && words.len() - last <= 2 {
        words.truncate(last);
    }
}

/// Returns true for the path of a field that describes access.
pub fn is_access(path: &str) -> bool {
    FIELDS.iter().any(|(setting, field, _)| {
        let rest = path.strip_prefix("location.").and_then(|path| path.strip_prefix(field));
        let is_it = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        is_it && ![ENCRYPTED, DEFAULT].contains(setting) && is_changeable(setting)
    })
}
