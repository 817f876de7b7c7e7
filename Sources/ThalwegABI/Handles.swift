import CThalweg
import Glibc
import ThalwegRunner
import ThalwegCore

/// Every handle that a host holds is a number in disguise: a place in this table and a generation. A NULL, a destroyed,
/// a foreign or an invented pointer is therefore recognised without touching the memory that it points to.
enum Handles {
  enum Kind: UInt8 { case optimizer = 1, regularizer, constraint, schedule, objective, cache, solver }

  private struct Place {
    var object: AnyObject?
    var kind = Kind.optimizer
    var generation: UInt = 1
    var busy = false
    /// What it has of its own.
    var services = tw_services()
    /// What its steps allocated, for those to come.
    var depot: OpaquePointer?
  }
  nonisolated(unsafe) private static var places: [Place] = []
  nonisolated(unsafe) private static var free: [Int] = []
  nonisolated(unsafe) private static let mutex: UnsafeMutablePointer<pthread_mutex_t> = {
    let m = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    m.initialize(to: pthread_mutex_t())
    pthread_mutex_init(m, nil)
    // A fork() while another thread holds the table must not leave it locked in the child.
    pthread_atfork({ Handles.lock() }, { Handles.unlock() }, { Handles.unlock() })
    return m
  }()
  static func lock() { pthread_mutex_lock(mutex) }
  static func unlock() { pthread_mutex_unlock(mutex) }

  private static let tag: UInt = 0xB  // no aligned pointer ends so
  private static let indexBits: UInt = 24

  static func make(_ object: AnyObject, _ kind: Kind) throws(Failure) -> OpaquePointer {
    lock()
    defer { unlock() }
    let index: Int
    if let k = free.popLast() {
      index = k
    } else {
      guard places.count < 1 << Int(indexBits) else { throw Failure(Status.memory, "too many handles") }
      index = places.count
      places.append(Place())
    }
    places[index].object = object
    places[index].kind = kind
    places[index].busy = false
    places[index].services = twi_services()
    let bits = (places[index].generation << (indexBits + 4)) | (UInt(index) << 4) | tag
    guard let p = OpaquePointer(bitPattern: bits) else { throw Failure(Status.internal, "a handle of zero") }
    return p
  }

  private static func index(_ p: OpaquePointer?, _ kind: Kind) throws(Failure) -> Int {
    guard let p else { throw Failure(Status.handle, "the \(kind) handle is NULL") }
    let bits = UInt(bitPattern: p)
    let i = Int((bits >> 4) & ((1 << indexBits) - 1))
    guard bits & 15 == tag, i < places.count, places[i].generation == bits >> (indexBits + 4), places[i].object != nil
    else {
      throw Failure(Status.handle, "this is not a live \(kind) handle: destroyed already, or never created")
    }
    guard places[i].kind == kind else {
      throw Failure(Status.handle, "a handle of kind \(places[i].kind) where one of kind \(kind) is wanted")
    }
    return i
  }

  /// Calls `body` with the object, which no other thread can use meanwhile; `stepping`: what it allocates stays with
  /// the handle for the next such call.
  static func with<T: AnyObject, R>(
    _ p: OpaquePointer?, _ kind: Kind, _: T.Type, stepping: Bool = false, _ body: (T) throws(Failure) -> R
  ) throws(Failure) -> R {
    lock()
    let i: Int
    do throws(Failure) {
      i = try index(p, kind)
      guard !places[i].busy else { throw Failure(Status.busy, "the \(kind) is in use by another thread") }
    } catch {
      unlock()
      throw error
    }
    // The kind was checked, and a kind holds one class.
    guard let object = places[i].object.map({ unsafeDowncast($0, to: T.self) }) else {
      unlock()
      throw Failure(Status.internal, "a handle without an object")
    }
    places[i].busy = true
    if stepping, places[i].depot == nil { places[i].depot = twi_depot_make() }
    let call = twi_enter(places[i].services, stepping ? places[i].depot : nil)
    unlock()
    defer {
      twi_leave(call)
      lock()
      places[i].busy = false
      unlock()
    }
    return try body(object)
  }

  /// What `body` says of the depot of a handle.
  static func depot<R>(_ p: OpaquePointer?, _ kind: Kind, _ body: (OpaquePointer?) -> R) throws(Failure) -> R {
    lock()
    defer { unlock() }
    return body(places[try index(p, kind)].depot)
  }

  static func destroy(_ p: OpaquePointer?, _ kind: Kind) throws(Failure) {
    lock()
    var object: AnyObject?
    var depot: OpaquePointer?
    do throws(Failure) {
      let i = try index(p, kind)
      guard !places[i].busy else { throw Failure(Status.busy, "the \(kind) is in use by another thread") }
      swap(&object, &places[i].object)
      swap(&depot, &places[i].depot)
      places[i].generation = (places[i].generation + 1) & ((1 << 36) - 1)
      if places[i].generation == 0 { places[i].generation = 1 }
      free.append(i)
    } catch {
      unlock()
      throw error
    }
    unlock()
    object = nil
    twi_depot_leave(depot)
  }
}

/// Runs `body`; an error becomes its status and the thread's last message.
@inline(__always)
func status(_ body: () throws(Failure) -> Void) -> tw_status {
  do {
    try body()
    return tw_status(TW_OK)
  } catch { return report(error) }
}
@inline(__always)
func statusCode(_ body: () throws(Failure) -> Int) -> tw_status {
  do { return tw_status(try body()) } catch { return report(error) }
}

@inline(never)
func report(_ f: Failure) -> tw_status {
  var message = f.message
  message.withUTF8 { utf8 in
    utf8.withMemoryRebound(to: CChar.self) { if let p = $0.baseAddress { twi_set_error(p, $0.count) } }
  }
  return f.status
}

func null(_ name: String) -> Failure { Failure(Status.argument, "`\(name)` is NULL") }

/// A C string, checked.
func string(_ p: UnsafePointer<CChar>?, _ name: String) throws(Failure) -> String {
  guard let p else { throw null(name) }
  guard let s = String(validatingCString: p) else { throw Failure(Status.argument, "`\(name)` is not valid UTF-8") }
  return s
}

/// The tensors of an array, checked one by one.
/// `expected` is the number of parameters where one tensor each is wanted.
func views(_ p: UnsafePointer<tw_tensor>?, _ count: Int, _ kind: String, expected: Int? = nil) throws(Failure) -> [View]
{
  if let expected, count != expected, !(kind == "shadow" && count == 0) {
    throw Failure(Status.count, "expected \(expected) \(kind)s, one for each parameter, got \(UInt(bitPattern: count))")
  }
  guard count >= 0, count <= 1 << 28 else {
    throw Failure(Status.count, "count must be 0 to 2^28, got \(UInt(bitPattern: count))")
  }
  if count == 0 { return [] }
  guard let p else { throw null("\(kind)s") }
  var list: [View] = []
  list.reserveCapacity(min(count, 1 << 16))  // a count may be nonsense
  for i in 0..<count { list.append(try View(p[i], "\(kind) \(i)")) }
  return list
}

/// Copies a text into the caller's buffer, with a final zero.
func deliver(
  _ text: String, _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) throws(Failure) {
  let bytes = Array(text.utf8)
  needed?.pointee = bytes.count + 1
  if capacity == 0 {
    guard needed != nil else { throw null("needed") }
    return
  }
  guard let buffer else { throw null("buffer") }
  guard capacity < 0 || capacity > bytes.count else {
    throw Failure(Status.space, "the text needs \(bytes.count + 1) bytes, the buffer has \(capacity)")
  }
  for (i, b) in bytes.enumerated() { buffer[i] = CChar(bitPattern: b) }
  buffer[bytes.count] = 0
}

/// C strings that live as long as the process, one a text.
enum Interned {
  nonisolated(unsafe) private static var table: [String: UnsafePointer<CChar>] = [:]
  static func c(_ s: String) -> UnsafePointer<CChar> {
    Handles.lock()
    defer { Handles.unlock() }
    if let p = table[s] { return p }
    let bytes = Array(s.utf8)
    let p = UnsafeMutablePointer<CChar>.allocate(capacity: bytes.count + 1)
    for (i, b) in bytes.enumerated() { p[i] = CChar(bitPattern: b) }
    p[bytes.count] = 0
    table[s] = UnsafePointer(p)
    return UnsafePointer(p)
  }
}
