import CThalweg
import Glibc
import ThalwegCore

/// Whole files, read and replaced. Errors are TW_ERROR_FILE and name the path and the system's reason.
package enum Files {
  /// The bytes of a file, in memory of the host's allocator.
  package struct Content: Sendable {
    private let memory: Memory
    private let count: Int
    fileprivate init(_ memory: Memory, _ count: Int) { (self.memory, self.count) = (memory, count) }
    /// Valid while the content lives.
    package var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: memory.base, count: count) }
  }

  /// Reads a regular file; anything else is refused at once, a pipe without a writer too.
  ///
  /// `begins` sees the first bytes and the size before room for all of them is asked for: a sparse file may claim any
  /// size. Errors: TW_ERROR_FILE; TW_ERROR_MEMORY when the file is larger than the memory that can be had; those of
  /// `begins`.
  package static func read(
    _ path: String, _ allocator: Allocator,
    begins: (UnsafeRawBufferPointer, Int) throws(Failure) -> Void = { (_, _) throws(Failure) in }
  ) throws(Failure) -> Content {
    func problem(_ why: String = reason()) -> Failure { Failure(Status.file, "cannot read `\(path)`: \(why)") }
    let fd = twi_open_read(path)
    guard fd >= 0 else { throw problem() }
    defer { close(fd) }
    var info = stat()
    guard fstat(fd, &info) == 0 else { throw problem() }
    guard info.st_mode & S_IFMT == S_IFREG else { throw problem("it is not a regular file") }
    let size = Int(info.st_size)
    func fill(_ p: UnsafeMutableRawPointer, from: Int, to end: Int) throws(Failure) {
      var at = from
      while at < end {
        let n = pread(fd, p + at, min(end - at, 1 << 30), off_t(at))
        if n < 0, twi_errno() == EINTR { continue }
        guard n >= 0 else { throw problem() }
        guard n > 0 else { throw problem("it became shorter while it was read") }
        at += n
      }
    }
    let first = try Memory(4096, allocator), known = min(size, 4096)
    defer { withExtendedLifetime(first) {} }
    try fill(first.base, from: 0, to: known)
    try begins(UnsafeRawBufferPointer(start: first.base, count: known), size)
    let memory = try Memory(size, allocator, zeroed: false)
    try fill(memory.base, from: 0, to: size)
    return Content(memory, size)
  }

  /// Writes a file anew: `body` hands its bytes to `put`, piece after piece. Whoever opens the path sees the old file
  /// or the new one, never a part: the bytes go into a file of another name in the same folder, which is synced and
  /// then takes the name over. That name is of this call alone, so that two writers of one path do not meet. A symbolic
  /// link stays, and what it leads to is replaced; a file that is replaced hands on its permissions. After an error
  /// everything is as before.
  package static func write(
    to path: String, _ body: (_ put: (UnsafeRawBufferPointer) throws(Failure) -> Void) throws(Failure) -> Void
  ) throws(Failure) {
    func problem(_ why: String = reason()) -> Failure { Failure(Status.file, "cannot write `\(path)`: \(why)") }
    guard let target = destination(of: path) else {
      throw problem("the symbolic link there leads to a name that is not valid UTF-8")
    }
    var existing = stat()
    let replaces = stat(target, &existing) == 0
    guard replaces || twi_errno() == ENOENT else { throw problem() }
    if replaces, existing.st_mode & S_IFMT != S_IFREG { throw problem("it is not a regular file") }
    let folder = target.lastIndex(of: "/").map { target[...$0] } ?? ""
    let buffer = try Memory(1 << 16, .init(), zeroed: false)
    var temporary = "", fd: Int32 = -1, trials = 0
    repeat {
      temporary = folder + ".thalweg-" + String(UInt64.random(in: 0 ... .max), radix: 36) + ".tmp"
      // Nobody else may read it before it has its permissions.
      fd = twi_open_new(temporary, replaces ? 0o600 : 0o644)
      trials += 1
    } while fd < 0 && twi_errno() == EEXIST && trials < 100
    guard fd >= 0 else { throw problem() }

    var held = 0
    func send(_ p: UnsafeRawPointer, _ count: Int) throws(Failure) {
      var at = 0
      while at < count {
        let n = Glibc.write(fd, p + at, min(count - at, 1 << 30))
        if n < 0, twi_errno() == EINTR { continue }
        guard n > 0 else { throw problem() }
        at += n
      }
    }
    func put(_ bytes: UnsafeRawBufferPointer) throws(Failure) {
      guard let p = bytes.baseAddress, bytes.count > 0 else { return }
      if held + bytes.count > buffer.size {
        try send(buffer.base, held)
        held = 0
      }
      if bytes.count > buffer.size {
        try send(p, bytes.count)
      } else {
        (buffer.base + held).copyMemory(from: p, byteCount: bytes.count)
        held += bytes.count
      }
    }
    do throws(Failure) {
      try body(put)
      try send(buffer.base, held)
      guard !replaces || fchmod(fd, existing.st_mode & 0o777) == 0, fsync(fd) == 0 else { throw problem() }
      let closed = close(fd)
      fd = -1
      guard closed == 0, rename(temporary, target) == 0 else { throw problem() }
    } catch {
      if fd >= 0 { close(fd) }
      unlink(temporary)
      throw error
    }
  }

  private static func reason() -> String { String(cString: twi_strerror(twi_errno())) }

  /// Where a chain of symbolic links leads to, whether there is a file or not; nil when that is no text.
  private static func destination(of path: String) -> String? {
    var target = path
    for _ in 0..<40 {
      let (count, text) = withUnsafeTemporaryAllocation(of: CChar.self, capacity: Int(PATH_MAX)) {
        (buffer) -> (Int, String?) in
        guard let p = buffer.baseAddress else { return (0, nil) }
        let n = readlink(target, p, buffer.count - 1)
        p[max(0, n)] = 0
        return (n, String(validatingCString: p))
      }
      guard count > 0 else { break }
      guard let text else { return nil }
      target = text.hasPrefix("/") ? text : (target.lastIndex(of: "/").map { String(target[...$0]) } ?? "") + text
    }
    return target
  }
}
