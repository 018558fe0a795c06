//! `blockctl top`

pub mod args;
pub mod rates;
pub(super) mod screen;

use crate::{
    failure::{EXIT_DONE, Exit, Failure},
    output::Context,
    signals::Signals,
    table::printable,
};
use args::TopArgs;
use blockd_api::{ClientError, Document, operations};
use rates::{ActivityRates, Sampler};
use rustix::process::{Signal, getpid, kill_process};
use screen::Screen;
use std::{
    io::{self, IsTerminal, Stdout, Write},
    time::Duration,
};
use tokio::{signal::unix::SignalKind, time::sleep};

pub async fn run(context: &Context<'_>, args: TopArgs) -> Exit {
    let mut looks = Sampler::new(context.client.call(operations::GET_ACTIVITY, &()).await?);
    if args.once {
        sleep(args.interval).await;
        let picture = looks.next(context.client.call(operations::GET_ACTIVITY, &()).await?, args.sort);
        return context
            .output
            .text(&picture, || picture.render(context.output.is_colored(), args.width.width()));
    }
    let is_drawn = !context.output.is_json() && io::stdout().is_terminal();
    if is_drawn { draw(context, looks, &args).await } else { print(context, looks, &args).await }
}

/// Prints tables until an interrupt or a closed pipe.
async fn print(context: &Context<'_>, mut looks: Sampler, args: &TopArgs) -> Exit {
    let mut is_first = true;
    loop {
        sleep(args.interval).await;
        let picture = looks.next(context.client.call(operations::GET_ACTIVITY, &()).await?, args.sort);
        let text = match context.output.is_json() {
            true => line(&picture)?,
            false if is_first => picture.render(context.output.is_colored(), args.width.width()),
            false => "\n".to_owned() + &picture.render(context.output.is_colored(), args.width.width()),
        };
        is_first = false;
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => {}
            // The reader closed the pipe, as `head` does.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(EXIT_DONE),
            Err(source) => return Err(Failure::stdout(source)),
        }
    }
}

fn line(picture: &ActivityRates) -> Result<String, Failure> {
    let text = serde_json::to_string(&Document::new(picture)).map_err(Failure::stdout)?;
    Ok(text + "\n")
}

/// Draws on the terminal until an interrupt. Waits for a daemon that restarts.
async fn draw(context: &Context<'_>, mut looks: Sampler, args: &TopArgs) -> Exit {
    let listen = |kinds: &[SignalKind]| Signals::listen(kinds).map_err(Failure::runtime);
    let mut ends = listen(&[SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()])?;
    let mut stops = listen(&[SignalKind::from_raw(Signal::TSTP.as_raw())])?;
    let failed = Failure::stdout;
    let enter = || Screen::<Stdout>::enter(io::stdout()).map_err(failed);
    let mut screen = enter()?;
    // The first interval is short.
    let mut wait = args.interval.min(Duration::from_millis(500));
    loop {
        let look = async {
            sleep(wait).await;
            context.client.call(operations::GET_ACTIVITY, &()).await
        };
        let seen = tokio::select! {
            () = ends.received() => return Ok(EXIT_DONE),
            () = stops.received() => {
                drop(screen);
                // The shell owns the terminal while the process is stopped.
                let _ = kill_process(getpid(), Signal::STOP);
                screen = enter()?;
                continue;
            }
            seen = look => seen,
        };
        wait = args.interval;
        let text = match seen {
            Ok(activity) => {
                looks.next(activity, args.sort).render(context.output.is_colored(), args.width.width())
            }
            Err(error) => away(&error),
        };
        screen.show(&text).map_err(failed)?;
    }
}

fn away(error: &ClientError) -> String {
    printable(&error.to_string()) + "\n"
}
