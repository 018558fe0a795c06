//! Request of `credentials create`, from options, a file, the environment and secret sources.

use super::args::{CreateArgs, Provider, Settings};
use crate::{
    failure::Failure,
    secrets::{Sources, read_file},
};
use blockd_api::{
    SecretInput,
    credentials::{AssumedRole, AzureAuth, Connection, CreateCredential, ProviderRequest, SwiftAuth},
};
use std::path::{Path, PathBuf};

/// Default region.
const DEFAULT_REGION: &str = "us-east-1";

/// Builds the request from options and file, and reads secrets.
///
/// # Errors
/// A setting is missing or contradictory, or a file cannot be read.
pub fn request(args: CreateArgs) -> Result<CreateCredential, Failure> {
    let CreateArgs { name, file, mut settings } = args;
    if let Some(file) = &file {
        settings.complete(read_settings(file)?);
    }
    let provider = settings
        .provider
        .ok_or_else(|| Failure::usage("--provider is missing: local, s3, azure, google or swift"))?;
    refuse_settings_of_others(&settings, provider)?;
    refuse_two_on_stdin(&settings, file.as_deref())?;
    let encryption_passphrase = Sources {
        what: "encryption passphrase",
        flag: settings.encryption_passphrase.as_ref(),
        file: settings.encryption_passphrase_file.as_deref(),
        from: settings.encryption_passphrase_from.as_ref(),
        variable: "BLOCKD_ENCRYPTION_PASSPHRASE",
        is_public: false,
    }
    .input()?;
    let connection = connection(&settings)?;
    let provider = match provider {
        Provider::Local => local(&settings)?,
        Provider::S3 => s3(&settings)?,
        Provider::Azure => azure(&settings)?,
        Provider::Google => google(&settings)?,
        Provider::Swift => swift(&settings)?,
    };
    Ok(CreateCredential { name, provider, connection, encryption_passphrase })
}

/// Parses settings in TOML or JSON.
fn read_settings(path: &Path) -> Result<Settings, Failure> {
    let text = read_file("settings", path)?;
    let is_json = text.expose().trim_start().starts_with('{');
    let (line, what) = if is_json {
        match serde_json::from_str(text.expose()) {
            Ok(settings) => return Ok(settings),
            Err(error) => (error.line(), error.to_string()),
        }
    } else {
        match toml::from_str(text.expose()) {
            Ok(settings) => return Ok(settings),
            Err(error) => {
                let before = error.span().and_then(|span| text.expose().get(..span.start));
                (before.map_or(1, |before| before.matches('\n').count() + 1), error.message().to_owned())
            }
        }
    };
    // Other messages of the parser quote values, which may be secrets.
    let what = match what.strip_prefix("unknown field ").and_then(|rest| rest.split(',').next()) {
        Some(field) => format!("it has an unknown setting {field}"),
        None => "it is not understood".to_owned(),
    };
    Err(Failure::usage(format!("--file {}: line {line}: {what}", path.display())))
}

fn refuse_settings_of_others(settings: &Settings, chosen: Provider) -> Result<(), Failure> {
    let groups = [
        (Provider::Local, "local", settings.local()),
        (Provider::S3, "s3", settings.s3()),
        (Provider::Azure, "azure", settings.azure()),
        (Provider::Google, "google", settings.google()),
        (Provider::Swift, "swift", settings.swift()),
    ];
    let name_of = |wanted| groups.iter().find(|(one, ..)| *one == wanted).map_or("", |(_, name, _)| *name);
    let refuse = |flag: &str, owner: &str| {
        let chosen = name_of(chosen);
        Err(Failure::usage(format!(
            "{flag} belongs to --provider {owner}, and --provider {chosen} was given"
        )))
    };
    for (provider, name, settings) in &groups {
        if let Some((flag, _)) =
            settings.iter().find(|(_, setting)| *provider != chosen && setting.is_given())
        {
            return refuse(flag, name);
        }
    }
    let mut foreign = Vec::new();
    if chosen == Provider::Local {
        foreign.extend(settings.network());
    }
    if matches!(chosen, Provider::Local | Provider::Swift) {
        foreign.extend(settings.identity());
    }
    match foreign.into_iter().find(|(_, setting)| setting.is_given()) {
        Some(("--use-iam", _)) => refuse("--use-iam", "s3, azure or google"),
        Some((flag, _)) => refuse(flag, "s3, azure, google or swift"),
        None => Ok(()),
    }
}

fn refuse_two_on_stdin(settings: &Settings, file: Option<&Path>) -> Result<(), Failure> {
    let on_stdin = [
        file,
        settings.s3_secret_key_file.as_deref(),
        settings.azure_account_key_file.as_deref(),
        settings.azure_sas_token_file.as_deref(),
        settings.google_json_key_file.as_deref(),
        settings.swift_key_file.as_deref(),
        settings.swift_token_file.as_deref(),
        settings.encryption_passphrase_file.as_deref(),
    ];
    if on_stdin.into_iter().flatten().filter(|path| path.as_os_str() == "-").count() > 1 {
        return Err(Failure::usage(
            "two secrets cannot both be read from stdin: give a file for one of them",
        ));
    }
    Ok(())
}

fn connection(settings: &Settings) -> Result<Connection, Failure> {
    let ca_certificates = settings.ca_certificate.as_deref().map(|path| read_file("CA certificate", path));
    let proxy =
        match (&settings.proxy, settings.use_proxy) {
            (Some(proxy), false) => Some(proxy.clone()),
            (None, false) => None,
            (None, true) => {
                let found = variable(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]);
                Some(found.ok_or_else(|| {
                    Failure::usage("--use-proxy: there is no HTTPS_PROXY in the environment")
                })?)
            }
            (Some(_), true) => {
                return Err(Failure::usage("--proxy and --use-proxy are both given: drop one of them"));
            }
        };
    let upload = settings.limit_upload.clone().unwrap_or_default();
    let download = settings.limit_download.clone().unwrap_or_default();
    Ok(Connection {
        prefix: settings.prefix.clone(),
        ca_certificates: ca_certificates.transpose()?.map(|text| text.expose().to_owned()),
        proxy,
        limit_upload_bytes_per_s: upload.otherwise_bytes_per_s,
        limit_download_bytes_per_s: download.otherwise_bytes_per_s,
        limit_upload_windows: upload.windows,
        limit_download_windows: download.windows,
        limit_time_zone: settings.limit_time_zone.clone(),
    })
}

/// Returns the first non-empty variable.
fn variable(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

/// Returns the given value, or that of the environment.
fn given_or(given: &Option<String>, variables: &[&str]) -> Option<String> {
    given.clone().filter(|value| !value.is_empty()).or_else(|| variable(variables))
}

fn needs(provider: &str, what: &str) -> Failure {
    Failure::usage(format!("--provider {provider} needs {what}"))
}

fn bucket(settings: &Settings, provider: &str) -> Result<String, Failure> {
    let bucket = settings.bucket.clone().filter(|bucket| !bucket.is_empty());
    bucket.ok_or_else(|| {
        needs(provider, "--bucket BUCKET: blockd makes no buckets, so that its key need not be allowed to")
    })
}

fn local(settings: &Settings) -> Result<ProviderRequest, Failure> {
    let path = settings.path.as_ref().ok_or_else(|| Failure::usage("--provider local needs --path DIR"))?;
    // The daemon has another working directory.
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("--path {}: {error}", path.display())))?;
    if absolute.to_str().is_none() {
        return Err(Failure::usage(format!("--path {} is not UTF-8", absolute.display())));
    }
    Ok(ProviderRequest::Local { path: absolute })
}

fn s3(settings: &Settings) -> Result<ProviderRequest, Failure> {
    let needs = |what: &str| needs("s3", what);
    let endpoint = settings.s3_endpoint.as_deref().ok_or_else(|| needs("--s3-endpoint HOST:PORT"))?;
    let (endpoint, disable_ssl) = plain_endpoint("--s3-endpoint", endpoint, settings.s3_disable_ssl)?;
    let bucket = bucket(settings, "s3")?;
    let (mut access_key, mut secret_key) = (settings.s3_access_key.clone(), None);
    if !settings.use_iam {
        let found = given_or(&access_key, &["AWS_ACCESS_KEY_ID"]);
        let missing = "--s3-access-key KEY, or AWS_ACCESS_KEY_ID in the environment, or --use-iam";
        access_key = Some(found.ok_or_else(|| needs(missing))?);
        let sources = Sources {
            what: "S3 secret key",
            flag: settings.s3_secret_key.as_ref(),
            file: settings.s3_secret_key_file.as_deref(),
            from: settings.s3_secret_key_from.as_ref(),
            variable: "AWS_SECRET_ACCESS_KEY",
            is_public: false,
        };
        secret_key = Some(sources.input()?.ok_or_else(|| {
            needs(
                "--s3-secret-key-file FILE, --s3-secret-key-from REF, --s3-secret-key KEY, or AWS_SECRET_ACCESS_KEY in the environment",
            )
        })?);
    } else if access_key.is_some()
        || settings.s3_secret_key.is_some()
        || settings.s3_secret_key_file.is_some()
        || settings.s3_secret_key_from.is_some()
    {
        return Err(Failure::usage("--use-iam and an access key are both given: drop one of them"));
    }
    let role = settings.s3_role_arn.clone().map(|arn| AssumedRole {
        arn,
        external_id: settings.s3_external_id.clone(),
        endpoint: settings.s3_sts_endpoint.clone(),
    });
    // Dependencies between settings are not checked in files.
    if role.is_none() && (settings.s3_external_id.is_some() || settings.s3_sts_endpoint.is_some()) {
        return Err(Failure::usage(
            "--s3-external-id and --s3-sts-endpoint are for a role: give --s3-role-arn",
        ));
    }
    Ok(ProviderRequest::S3 {
        endpoint,
        region: settings.s3_region.clone().unwrap_or_else(|| DEFAULT_REGION.to_owned()),
        bucket,
        access_key,
        secret_key,
        use_iam: settings.use_iam,
        role,
        disable_ssl,
        disable_path_style: settings.disable_path_style,
        storage_class: settings.s3_storage_class.clone(),
    })
}

/// Parses a custom endpoint.
fn own_endpoint(flag: &str, given: Option<&String>) -> Result<(Option<String>, bool), Failure> {
    match given {
        Some(given) => {
            let (endpoint, disable_ssl) = plain_endpoint(flag, given, false)?;
            Ok((Some(endpoint), disable_ssl))
        }
        None => Ok((None, false)),
    }
}

fn azure(settings: &Settings) -> Result<ProviderRequest, Failure> {
    let needs = |what: &str| needs("azure", what);
    let account = given_or(&settings.azure_account_name, &["AZURE_STORAGE_ACCOUNT"]);
    let account = account.ok_or_else(|| needs("--azure-account-name NAME, or AZURE_STORAGE_ACCOUNT"))?;
    let (endpoint, disable_ssl) = own_endpoint("--azure-endpoint", settings.azure_endpoint.as_ref())?;
    let container = bucket(settings, "azure")?;
    let has_key = settings.azure_account_key.is_some()
        || settings.azure_account_key_file.is_some()
        || settings.azure_account_key_from.is_some();
    let has_sas = settings.azure_sas_token.is_some()
        || settings.azure_sas_token_file.is_some()
        || settings.azure_sas_token_from.is_some();
    if u8::from(has_key) + u8::from(has_sas) + u8::from(settings.use_iam) > 1 {
        let message =
            "--azure-account-key, --azure-sas-token and --use-iam exclude each other: give one of them";
        return Err(Failure::usage(message));
    }
    if settings.azure_client_id.is_some() && !settings.use_iam {
        return Err(Failure::usage("--azure-client-id belongs to --use-iam"));
    }
    let key = Sources {
        what: "Azure account key",
        flag: settings.azure_account_key.as_ref(),
        file: settings.azure_account_key_file.as_deref(),
        from: settings.azure_account_key_from.as_ref(),
        variable: "AZURE_STORAGE_KEY",
        is_public: false,
    };
    let sas = Sources {
        what: "Azure shared access signature",
        flag: settings.azure_sas_token.as_ref(),
        file: settings.azure_sas_token_file.as_deref(),
        from: settings.azure_sas_token_from.as_ref(),
        variable: "AZURE_STORAGE_SAS_TOKEN",
        is_public: false,
    };
    let auth = if settings.use_iam {
        AzureAuth::ManagedIdentity { client_id: settings.azure_client_id.clone() }
    } else if has_sas {
        AzureAuth::Sas { token: sas.input()?.ok_or_else(|| needs("--azure-sas-token-file FILE"))? }
    } else if let Some(key) = key.input()? {
        AzureAuth::AccountKey { key }
    } else if let Some(token) = sas.input()? {
        AzureAuth::Sas { token }
    } else {
        return Err(needs(
            "--azure-account-key-file FILE, --azure-sas-token-file FILE, AZURE_STORAGE_KEY in the environment, or --use-iam",
        ));
    };
    Ok(ProviderRequest::Azure { account, container, auth, endpoint, disable_ssl })
}

fn google(settings: &Settings) -> Result<ProviderRequest, Failure> {
    let (endpoint, disable_ssl) = own_endpoint("--google-endpoint", settings.google_endpoint.as_ref())?;
    let bucket = bucket(settings, "google")?;
    let has_key = settings.google_json_key_file.is_some() || settings.google_json_key_from.is_some();
    if settings.use_iam && has_key {
        return Err(Failure::usage("--use-iam and --google-json-key-file are both given: drop one of them"));
    }
    let mut json_key: Option<SecretInput> = None;
    if let Some(reference) = &settings.google_json_key_from {
        if settings.google_json_key_file.is_some() {
            return Err(Failure::usage(
                "--google-json-key-file and --google-json-key-from are both given: drop one of them",
            ));
        }
        json_key = Some(reference.clone().into());
    } else if !settings.use_iam {
        let file = settings.google_json_key_file.clone();
        let file = file.or_else(|| variable(&["GOOGLE_APPLICATION_CREDENTIALS"]).map(PathBuf::from));
        let file = file.ok_or_else(|| {
            needs("google", "--google-json-key-file FILE, or GOOGLE_APPLICATION_CREDENTIALS, or --use-iam")
        })?;
        json_key = Some(read_file("Google key file", &file)?.into());
    }
    Ok(ProviderRequest::Google {
        project: settings.google_project_id.clone(),
        bucket,
        json_key,
        use_iam: settings.use_iam,
        endpoint,
        disable_ssl,
    })
}

fn swift(settings: &Settings) -> Result<ProviderRequest, Failure> {
    let container = bucket(settings, "swift")?;
    Ok(ProviderRequest::Swift { container, auth: swift_auth(settings)? })
}

/// Returns the access with a token, if one is given.
fn swift_token(settings: &Settings) -> Result<Option<SwiftAuth>, Failure> {
    let has_token_flag = settings.swift_token.is_some()
        || settings.swift_token_file.is_some()
        || settings.swift_token_from.is_some()
        || settings.swift_storage_url.is_some();
    let has_user_flag = settings.swift_auth_url.is_some() || settings.swift_user.is_some();
    if has_token_flag && has_user_flag {
        return Err(Failure::usage(
            "--swift-token takes the place of --swift-auth-url and --swift-user: drop one of them",
        ));
    }
    let env_token = variable(&["OS_AUTH_TOKEN"]).is_some() && variable(&["OS_STORAGE_URL"]).is_some();
    if !has_token_flag && (has_user_flag || !env_token) {
        return Ok(None);
    }
    let needs = |what: &str| needs("swift", what);
    let url = given_or(&settings.swift_storage_url, &["OS_STORAGE_URL"]);
    let token = Sources {
        what: "Swift token",
        flag: settings.swift_token.as_ref(),
        file: settings.swift_token_file.as_deref(),
        from: settings.swift_token_from.as_ref(),
        variable: "OS_AUTH_TOKEN",
        is_public: false,
    };
    Ok(Some(SwiftAuth::Token {
        storage_url: url.ok_or_else(|| needs("--swift-storage-url URL, or OS_STORAGE_URL"))?,
        token: token.input()?.ok_or_else(|| needs("--swift-token-file FILE, or OS_AUTH_TOKEN"))?,
    }))
}

fn swift_auth(settings: &Settings) -> Result<SwiftAuth, Failure> {
    if let Some(auth) = swift_token(settings)? {
        return Ok(auth);
    }
    let needs = |what: &str| needs("swift", what);
    let version = settings.swift_auth_version.or_else(|| guess_version(settings));
    let version = version.ok_or_else(|| {
        needs("--swift-auth-version 1, 2 or 3: what is given (or ST_… and OS_… in the environment) does not tell which")
    })?;
    let v1 = version == 1;
    let url = given_or(&settings.swift_auth_url, if v1 { &["ST_AUTH"] } else { &["OS_AUTH_URL"] });
    let auth_url = url.ok_or_else(|| needs("--swift-auth-url URL, or ST_AUTH or OS_AUTH_URL"))?;
    let user = given_or(&settings.swift_user, if v1 { &["ST_USER"] } else { &["OS_USERNAME"] });
    let user = user.ok_or_else(|| needs("--swift-user USER, or ST_USER or OS_USERNAME"))?;
    let secret = Sources {
        what: "Swift key",
        flag: settings.swift_key.as_ref(),
        file: settings.swift_key_file.as_deref(),
        from: settings.swift_key_from.as_ref(),
        variable: if v1 { "ST_KEY" } else { "OS_PASSWORD" },
        is_public: false,
    };
    let secret: SecretInput =
        secret.input()?.ok_or_else(|| needs("--swift-key-file FILE, or ST_KEY or OS_PASSWORD"))?;
    let region = given_or(&settings.swift_region, &["OS_REGION_NAME"]);
    Ok(match version {
        1 => SwiftAuth::V1 { auth_url, user, key: secret },
        2 => SwiftAuth::V2 {
            auth_url,
            user,
            password: secret,
            tenant_name: given_or(&settings.swift_tenant_name, &["OS_TENANT_NAME"]),
            tenant_id: given_or(&settings.swift_tenant_id, &["OS_TENANT_ID"]),
            region,
        },
        _ => {
            let domain =
                |given, variable: &str| given_or(given, &[variable]).unwrap_or_else(|| "Default".to_owned());
            let project = given_or(&settings.swift_project_name, &["OS_PROJECT_NAME", "OS_TENANT_NAME"]);
            SwiftAuth::V3 {
                auth_url,
                user,
                password: secret,
                user_domain: domain(&settings.swift_user_domain_name, "OS_USER_DOMAIN_NAME"),
                project: project.ok_or_else(|| needs("--swift-project-name NAME, or OS_PROJECT_NAME"))?,
                project_domain: domain(&settings.swift_project_domain_name, "OS_PROJECT_DOMAIN_NAME"),
                region,
            }
        }
    })
}

/// Guesses the version of the auth service by its URL or by settings of one version.
fn guess_version(settings: &Settings) -> Option<u8> {
    let os_url = variable(&["OS_AUTH_URL"]);
    let url = match &settings.swift_auth_url {
        Some(url) => url.clone(),
        None if variable(&["ST_AUTH"]).is_some() => return Some(1),
        None => os_url?,
    };
    let url = url.trim_end_matches('/');
    for (ends, version) in [("/v3", 3), ("/v2.0", 2), ("/v1.0", 1), ("/v1", 1)] {
        if url.ends_with(ends) {
            return Some(version);
        }
    }
    let given = |flag: &Option<String>, name: &str| flag.is_some() || variable(&[name]).is_some();
    if given(&settings.swift_user_domain_name, "OS_USER_DOMAIN_NAME")
        || given(&settings.swift_project_domain_name, "OS_PROJECT_DOMAIN_NAME")
        || given(&settings.swift_project_name, "OS_PROJECT_NAME")
    {
        return Some(3);
    }
    (given(&settings.swift_tenant_name, "OS_TENANT_NAME") || given(&settings.swift_tenant_id, "OS_TENANT_ID"))
        .then_some(2)
}

/// Returns the endpoint as `host:port` and whether it uses plain HTTP, by scheme or option.
fn plain_endpoint(flag: &str, given: &str, disable_ssl: bool) -> Result<(String, bool), Failure> {
    let wrong = |why: &str| Failure::usage(format!("{flag} {why}: expected HOST or HOST:PORT"));
    let (host, disable_ssl) = match given.split_once("://") {
        Some(("http", host)) => (host, true),
        Some(("https", _)) if disable_ssl => return Err(wrong("contradicts --s3-disable-ssl")),
        Some(("https", host)) => (host, false),
        Some(_) => return Err(wrong("has an unknown scheme")),
        None => (given, disable_ssl),
    };
    let host = host.strip_suffix('/').unwrap_or(host);
    if host.is_empty() {
        return Err(wrong("has no host"));
    }
    if host.contains(',') {
        return Err(wrong("names several servers"));
    }
    if host
        .contains(|c: char| matches!(c, '/' | '?' | '#' | '@' | '\\') || c.is_whitespace() || c.is_control())
    {
        return Err(wrong("has more than a host and a port"));
    }
    Ok((host.to_owned(), disable_ssl))
}
