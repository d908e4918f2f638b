//! A database of its own for each test.

use crate::{Cluster, Result, Session, SqlError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A database with the extension in it.
#[derive(Clone)]
pub struct Database {
    cluster: Arc<Cluster>,
    /// Its name.
    pub name: String,
}

impl Database {
    /// Makes a database, with the extension or without.
    pub async fn create(cluster: &Arc<Cluster>, extension: bool) -> Result<Database> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        cluster.connect("postgres").await?.run(&format!("create database {name} template template0")).await?;
        let database = Database { cluster: cluster.clone(), name };
        if extension {
            database.connect().await?.run("create extension migrator").await?;
        }
        Ok(database)
    }

    /// A database that exists: on a standby, say.
    pub fn of(cluster: &Arc<Cluster>, name: &str) -> Database {
        Database { cluster: cluster.clone(), name: name.to_owned() }
    }

    /// The cluster it lives in.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// 15, 16, 18.
    pub fn major(&self) -> u32 {
        self.cluster.server.major
    }

    /// A session of the superuser.
    pub async fn connect(&self) -> Result<Session, SqlError> {
        self.connect_as("postgres", "test").await
    }

    /// A session of some role under an application's name.
    pub async fn connect_as(&self, role: &str, application: &str) -> Result<Session, SqlError> {
        Session::open(self.cluster.socket_folder(), self.cluster.port, &self.name, role, application).await
    }

    /// A URI with which programs find it.
    pub fn uri(&self) -> String {
        let folder = self.cluster.socket_folder().display().to_string().replace('/', "%2F");
        format!("postgresql://postgres@{folder}:{}/{}", self.cluster.port, self.name)
    }

    /// The environment with which PostgreSQL's own programs find it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        self.cluster.environment(&self.name)
    }
}
