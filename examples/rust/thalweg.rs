//! libthalweg from Rust, without a crate: what the example needs of thalweg.h, and a safe optimizer over it.

use std::ffi::{c_char, c_void, CStr, CString};
use std::{fmt, mem, ptr};

#[repr(C)]
struct TwTensor {
    data: *mut c_void,
    dtype: i32,
    ndim: i32,
    shape: *const i64,
    strides: *const i64,
    flags: u32,
    role: u32,
    reserved: [u64; 3],
}

/// What the method asks for.  Equal tags mean the same minibatch; `pass` counts the requests of a step.
#[repr(C)]
pub struct Request {
    struct_size: usize,
    pub kind: i32,
    pub pass: i32,
    pub tag: u64,
    pub index: i64,
    pub count: i64,
    loss: f64,
    probe: *const TwTensor,
    probe_count: usize,
}

const _: () = assert!(mem::size_of::<TwTensor>() == 64 && mem::size_of::<Request>() == 64);
const ABI_VERSION: u32 = 1;
const F32: i32 = 1;
const MORE: i32 = 1;
const SKIPPED: i32 = 2;
/// A gradient, a loss, both: what a closure that returns a loss can answer.
const ANSWERED: std::ops::RangeInclusive<i32> = 1..=3;

#[repr(C)]
struct Handle {
    _private: [u8; 0],
}

#[link(name = "thalweg")]
extern "C" {
    fn tw_abi_version() -> u32;
    fn tw_last_error() -> *const c_char;
    fn tw_optimizer_create(sentence: *const c_char, options: *const c_void, out: *mut *mut Handle) -> i32;
    fn tw_optimizer_destroy(optimizer: *mut Handle) -> i32;
    fn tw_optimizer_add_parameters(
        optimizer: *mut Handle,
        tensors: *const TwTensor,
        count: usize,
        names: *const *const c_char,
        group: *const c_char,
    ) -> i32;
    fn tw_optimizer_bind_gradients(optimizer: *mut Handle, tensors: *const TwTensor, count: usize) -> i32;
    fn tw_optimizer_next(optimizer: *mut Handle, request: *mut Request) -> i32;
    fn tw_optimizer_cancel(optimizer: *mut Handle) -> i32;
    fn tw_optimizer_get_number(optimizer: *mut Handle, group: *const c_char, path: *const c_char, out: *mut f64) -> i32;
    fn tw_optimizer_save(optimizer: *mut Handle, buffer: *mut c_void, capacity: usize, needed: *mut usize) -> i32;
    fn tw_optimizer_load(optimizer: *mut Handle, data: *const c_void, size: usize) -> i32;
}

/// A status below zero, and the library's message.
#[derive(Debug)]
pub struct Error {
    pub status: i32,
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (status {})", self.message, self.status)
    }
}

impl std::error::Error for Error {}

fn check(status: i32) -> Result<i32, Error> {
    if status >= 0 {
        return Ok(status);
    }
    // The library's text of this thread's last failure, never NULL.
    let message = unsafe { CStr::from_ptr(tw_last_error()) }.to_string_lossy().into_owned();
    Err(Error { status, message })
}

fn text(from: &str) -> Result<CString, Error> {
    CString::new(from).map_err(|_| Error { status: -3, message: "a text with a zero byte".into() })
}

/// A parameter and its gradient, in memory that stays where it is.
struct Slot {
    memory: [*mut [f32]; 2],
    shape: Vec<i64>,
}

/// An optimizer that owns its parameters and gradients: the library keeps pointers to them between calls, and writes
/// them within calls only, so that nobody holds a reference meanwhile.
pub struct Optimizer {
    handle: *mut Handle,
    slots: Vec<Slot>,
}

// A handle may be used from any thread, by one at a time; &mut self sees to that.
unsafe impl Send for Optimizer {}

impl Optimizer {
    /// The sentence, and the parameters' values and shapes; the gradients start at zero.
    pub fn new(sentence: &str, parameters: Vec<(Vec<f32>, Vec<i64>)>) -> Result<Self, Error> {
        assert_eq!(unsafe { tw_abi_version() }, ABI_VERSION, "another version of the library");
        let sentence = text(sentence)?;
        let mut made = Optimizer { handle: ptr::null_mut(), slots: Vec::new() };
        check(unsafe { tw_optimizer_create(sentence.as_ptr(), ptr::null(), &mut made.handle) })?;
        for (values, shape) in parameters {
            assert!(shape.iter().all(|&n| n >= 0) && shape.iter().product::<i64>() == values.len() as i64, "{shape:?}");
            let zeros = vec![0f32; values.len()];
            let memory = [values, zeros].map(|part| Box::into_raw(part.into_boxed_slice()));
            made.slots.push(Slot { memory, shape });
        }
        let (w, g) = (made.views(0), made.views(1));
        check(unsafe { tw_optimizer_add_parameters(made.handle, w.as_ptr(), w.len(), ptr::null(), ptr::null()) })?;
        check(unsafe { tw_optimizer_bind_gradients(made.handle, g.as_ptr(), g.len()) })?;
        Ok(made)
    }

    fn views(&self, which: usize) -> Vec<TwTensor> {
        let view = |slot: &Slot| TwTensor {
            data: slot.memory[which].cast(),
            dtype: F32,
            ndim: slot.shape.len() as i32,
            shape: slot.shape.as_ptr(),
            strides: ptr::null(),
            flags: 0,
            role: 0,
            reserved: [0; 3],
        };
        self.slots.iter().map(view).collect()
    }

    pub fn parameter(&self, index: usize) -> &[f32] {
        unsafe { &*self.slots[index].memory[0] }
    }

    /// One step: `answer` reads the parameters, fills the gradients and returns the loss, as often as the method asks.
    /// False when the non-finite policy refused it.  When `answer` fails or panics, the step is cancelled: parameters
    /// and state are those from before it.
    pub fn step<A>(&mut self, mut answer: A) -> Result<bool, Error>
    where
        A: FnMut(&Request, &[&[f32]], &mut [&mut [f32]]) -> Result<f64, Error>,
    {
        struct Open(*mut Handle);
        impl Drop for Open {
            fn drop(&mut self) {
                unsafe { tw_optimizer_cancel(self.0) }; // (refused, and nothing else, when the step has ended)
            }
        }
        let open = Open(self.handle);
        let mut request: Request = unsafe { mem::zeroed() };
        request.struct_size = mem::size_of::<Request>();
        loop {
            let status = check(unsafe { tw_optimizer_next(self.handle, &mut request) })?;
            if status != MORE {
                mem::forget(open);
                return Ok(status != SKIPPED);
            }
            if !ANSWERED.contains(&request.kind) {
                return Err(Error { status: -31, message: format!("a request of kind {}", request.kind) });
            }
            let w: Vec<&[f32]> = self.slots.iter().map(|slot| unsafe { &*slot.memory[0] }).collect();
            let mut g: Vec<&mut [f32]> = self.slots.iter().map(|slot| unsafe { &mut *slot.memory[1] }).collect();
            request.loss = answer(&request, &w, &mut g)?;
        }
    }

    /// A hyper-parameter or a measured value, as "adamw.lr" or "steps".
    pub fn get(&mut self, path: &str) -> Result<f64, Error> {
        let (path, mut value) = (text(path)?, 0.0);
        check(unsafe { tw_optimizer_get_number(self.handle, ptr::null(), path.as_ptr(), &mut value) })?;
        Ok(value)
    }

    /// The state as bytes, without the parameters; `load` takes it up.
    pub fn save(&mut self) -> Result<Vec<u8>, Error> {
        let mut needed = 0;
        check(unsafe { tw_optimizer_save(self.handle, ptr::null_mut(), 0, &mut needed) })?;
        let mut bytes = vec![0u8; needed];
        check(unsafe { tw_optimizer_save(self.handle, bytes.as_mut_ptr().cast(), bytes.len(), &mut needed) })?;
        Ok(bytes)
    }

    pub fn load(&mut self, bytes: &[u8]) -> Result<(), Error> {
        check(unsafe { tw_optimizer_load(self.handle, bytes.as_ptr().cast(), bytes.len()) }).map(|_| ())
    }
}

impl Drop for Optimizer {
    fn drop(&mut self) {
        // The handle first: what it borrows must still be there.
        if !self.handle.is_null() {
            unsafe { tw_optimizer_destroy(self.handle) };
        }
        for part in self.slots.iter().flat_map(|slot| slot.memory) {
            drop(unsafe { Box::from_raw(part) });
        }
    }
}
