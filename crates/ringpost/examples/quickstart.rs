//! The shortest program that is of use: a server and a client, here in one process.
//!
//! ```text
//! cargo run --example quickstart
//! ```

use anyhow::{Context, Result};
use ringpost::{Connection, Listener, Runtime};

fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("quickstart.sock");

    Runtime::new()?.block_on(async {
        let mut listener = Listener::bind(&path)?;
        let server = ringpost::spawn(async move {
            let mut connection = listener.accept().await?;
            while let Some(message) = connection.recv().await? {
                connection.send(&message.to_ascii_uppercase()).await?;
            }
            connection.shutdown().await?; // the client's `recv` will be `None`, not an error
            anyhow::Ok(())
        });

        let mut client = Connection::connect(&path).await?;
        for word in ["hello", "world"] {
            client.send(word.as_bytes()).await?;
            let answer = client.recv().await?.context("the server ended too early")?;
            println!("{word} -> {}", str::from_utf8(&answer)?);
        }
        client.shutdown().await?;
        server.await?
    })
}
