//! What a process holds, to be compared with what it held before a fault.

use ringpost_testkit::process;

/// Memory that the allocator may keep of what was given back, bytes.
pub const KEPT_BYTES_MAX: u64 = 4 << 20;

/// What this process holds now.
#[derive(Debug, Clone, Copy)]
pub struct Holdings {
    /// Open descriptors.
    pub descriptors: usize,
    /// Memory in RAM that is no file's, bytes.
    pub anonymous_bytes: u64,
    /// Memory that can't be swapped, bytes.
    pub locked_bytes: u64,
}

impl Holdings {
    /// Looks.
    pub fn now() -> Self {
        Self {
            descriptors: process::descriptors(),
            anonymous_bytes: process::anonymous_bytes(),
            locked_bytes: process::locked_bytes(),
        }
    }

    /// Waits until as many descriptors are open as then.
    pub async fn descriptors_are_back(&self) {
        let wanted = self.descriptors;
        crate::rig::until("descriptors are back", || process::descriptors() == wanted).await;
    }

    /// Checks that memory is what it was then.
    ///
    /// # Panics
    ///
    /// If it is not.
    #[track_caller]
    pub fn check_memory(&self) {
        let now = Self::now();
        assert_eq!(now.locked_bytes, self.locked_bytes, "locked memory");
        let grown = now.anonymous_bytes.saturating_sub(self.anonymous_bytes);
        assert!(grown < KEPT_BYTES_MAX, "{grown} bytes stay");
    }
}
