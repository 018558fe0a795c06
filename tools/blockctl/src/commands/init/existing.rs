//! Comparison of an existing backup location and schedule with the options of `blockctl init`.

use super::args::InitArgs;
use crate::{
    commands::{
        credentials::{
            create::read_settings,
            settings::{Defaults, PASSPHRASE, Settings, variable},
        },
        limits::limits_of,
        schedules::selected,
    },
    failure::Failure,
    output::Context,
    secrets::read_file,
    table::or_dash,
};
use blockd_api::{
    ClientError, CredentialRef, DailyLimit, Secret, SecretInput, SecretRef,
    credentials::{Credential, RekeyCredential},
    operations,
    schedules::Schedule,
};
use std::path::{self, PathBuf};

/// Compares the given options of the location. Keys of the store and connection settings change without
/// moving it.
///
/// # Errors
/// An option names another location or another limit, or contradicts its encryption.
pub async fn check_location(
    context: &Context<'_>,
    args: &InitArgs,
    found: &Credential,
) -> Result<(), Failure> {
    let given = match &args.file {
        Some(file) => args.settings.completed(&read_settings(file)?)?,
        None => args.settings.clone(),
    };
    check_settings(&given, found)?;
    let (passphrase, from) = match given.passphrase(Defaults::None)? {
        // A new recovery key takes precedence over the variable.
        None if found.encrypted && args.new_recovery_key.is_none() => {
            (variable(&[PASSPHRASE]).map(Secret::new).map(SecretInput::Value), PASSPHRASE)
        }
        given => (given, "the given passphrase"),
    };
    match passphrase {
        Some(_) if !found.encrypted => Err(differs(found, "and stores backups unencrypted")),
        _ if found.encrypted && args.no_encryption => Err(differs(found, "and is encrypted")),
        Some(SecretInput::Value(passphrase)) => match opens(context, found, passphrase).await? {
            Some(cause) => Err(differs(found, &format!("and {from} does not open it: {cause}"))),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Reports an option that contradicts an existing location.
fn differs(found: &Credential, cause: &str) -> Failure {
    Failure::usage(format!("backup location {} exists, {cause}", found.name))
        .with_hint("omit the options and variables of an existing location, or name another one")
}

fn check_settings(given: &Settings, found: &Credential) -> Result<(), Failure> {
    let store = &found.store;
    let dir = given.path.as_ref().and_then(|path| path::absolute(path).ok());
    let text = |path: &PathBuf| path.display().to_string();
    let prefix = |prefix: &Option<String>| prefix.as_ref().map(|prefix| prefix.trim_matches('/').to_owned());
    let [upload, download] = limits_of(found).map(|limit| Some(limit.to_string()));
    let limit = |given: &Option<DailyLimit>| given.as_ref().map(ToString::to_string);
    let key_from = |from: &Option<SecretRef>| from.as_ref().map(ToString::to_string);
    let compared = [
        ("provider", given.provider.map(|one| one.to_string()), Some(store.provider.to_string())),
        ("path", dir.as_ref().map(text), store.path.as_ref().map(text)),
        ("bucket", given.bucket.clone(), store.bucket.clone()),
        ("prefix", prefix(&given.prefix), prefix(&found.prefix)),
        ("s3-endpoint", servers(&given.s3_endpoint), servers(&store.endpoint)),
        ("s3-region", given.s3_region.clone(), store.region.clone()),
        ("azure-account-name", given.azure_account_name.clone(), store.account.clone()),
        ("azure-endpoint", servers(&given.azure_endpoint), servers(&store.endpoint)),
        ("google-endpoint", servers(&given.google_endpoint), servers(&store.endpoint)),
        ("swift-auth-url", servers(&given.swift_auth_url), servers(&store.endpoint)),
        ("limit-upload", limit(&given.limit_upload), upload),
        ("limit-download", limit(&given.limit_download), download),
        ("limit-time-zone", given.limit_time_zone.clone(), found.limit_time_zone.clone()),
        ("compression", given.compression.map(|one| one.to_string()), Some(found.compression.to_string())),
        ("deduplicate", given.deduplicate.map(|one| one.to_string()), Some(found.deduplicate.to_string())),
        (
            "encryption-passphrase-from",
            key_from(&given.encryption_passphrase_from),
            key_from(&found.encryption_key_from),
        ),
    ];
    for (option, given, own) in compared {
        if given.is_some() && given != own {
            let (given, own) = (or_dash(given), or_dash(own));
            return Err(differs(found, &format!("with --{option} {own} instead of {given}")));
        }
    }
    Ok(())
}

/// Returns why a passphrase does not open the location; `None` if it does.
async fn opens(
    context: &Context<'_>,
    found: &Credential,
    passphrase: Secret,
) -> Result<Option<String>, Failure> {
    let request = RekeyCredential {
        passphrase: Some(passphrase),
        new_passphrase: None,
        new_data_key: false,
        accept_key: None,
    };
    let location = CredentialRef::Id(found.credential_id);
    match context.client.call_at(operations::REKEY_CREDENTIAL, &location, &request).await {
        Ok(_) => Ok(None),
        Err(ClientError::Api(error)) => Ok(Some(error.message)),
        Err(error) => Err(error.into()),
    }
}

/// Returns servers without their schemes, as far as two texts name the same ones.
fn servers(text: &Option<String>) -> Option<String> {
    let plain = |server: &str| {
        let server = server.trim().trim_end_matches('/');
        let server =
            server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
        server.to_owned()
    };
    text.as_ref().map(|text| text.split(',').map(plain).collect::<Vec<_>>().join(","))
}

/// Compares a schedule with what `init` would create, and with the given options.
///
/// # Errors
/// It does not back up all volumes to the location, is paused, or has other times or another retention.
pub fn check_schedule(args: &InitArgs, location: &Credential, found: &Schedule) -> Result<(), Failure> {
    let differs = |cause: String, hint: &str| {
        let message = format!("schedule {} exists, {cause}", args.name);
        Err(Failure::usage(message).with_hint(hint))
    };
    let another = "name another location, or delete this schedule (`blockctl cloudsnap schedules delete`)";
    let update = "omit these options, or change it with `blockctl cloudsnap schedules update`";
    if !found.selector.all {
        return differs(format!("and selects {} instead of all volumes", selected(&found.selector)), another);
    }
    if !found.credential_ids.contains(&location.credential_id) {
        return differs(format!("and does not back up to {}", location.name), another);
    }
    if found.paused {
        let resume = format!("blockctl cloudsnap schedules resume {}", args.name);
        return differs("and is paused".to_owned(), &resume);
    }
    let usage = |error: blockd_schedule::ScheduleError| Failure::usage(error.to_string());
    let times = args.times.rules(false).map_err(usage)?;
    if !times.is_empty() && times != found.rules {
        return differs(format!("with other times: {}", found.schedule), update);
    }
    match args.retain.retention(&args.times.zone()) {
        Some(retain) if retain != found.retain => {
            differs(format!("with another retention: {}", found.retain), update)
        }
        _ => Ok(()),
    }
}

/// Returns the file of the requested recovery key if it opens the location: an earlier `init` wrote it.
///
/// # Errors
/// There is no such file, or it does not open the location: an existing location takes no new key.
pub async fn recovery_key(
    context: &Context<'_>,
    args: &InitArgs,
    found: &Credential,
) -> Result<Option<PathBuf>, Failure> {
    let Some(file) = &args.new_recovery_key else { return Ok(None) };
    let refused = |cause: String| {
        Failure::usage(format!("backup location {} exists, {cause}", found.name))
            .with_hint("omit --new-recovery-key, or name another location")
    };
    if !found.encrypted {
        return Err(refused("and stores backups unencrypted: it has no recovery key".to_owned()));
    }
    if !file.exists() {
        return Err(refused("and keeps its recovery key".to_owned()));
    }
    match opens(context, found, read_file("recovery key", file)?).await? {
        None => Ok(Some(file.clone())),
        Some(cause) => Err(refused(format!("and {} does not open it: {cause}", file.display()))),
    }
}
