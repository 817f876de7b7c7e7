internal import ThalwegCore

/// What went wrong. A call that throws has changed nothing, unless its documentation says otherwise.
public struct ThalwegError: Error, Hashable, Sendable, CustomStringConvertible {
  /// The kinds of errors; the raw values are those of the C interface (`TW_ERROR_...`).
  public enum Code: Int32, Sendable, CaseIterable {
    /// A defect in the library.
    case `internal` = -1
    /// An allocation failed.
    case memory = -2
    /// An argument that cannot be used.
    case argument = -3
    /// Of the C interface alone, as `busy` and `space`.
    case handle = -4
    case busy = -5
    /// A wrong number of tensors, or of elements.
    case count = -6
    /// A sentence that cannot be read.
    case syntax = -10
    /// No such method, or not allowed where it stands.
    case method = -11
    /// No such hyper-parameter, group, input or command.
    case name = -12
    /// A hyper-parameter of the wrong type.
    case type = -13
    /// A number out of its range, or a bad combination.
    case range = -14
    /// An element type that does not fit.
    case dtype = -20
    /// A shape that does not fit, is negative, or overflows.
    case shape = -21
    /// Misaligned, read-only or self-overlapping memory.
    case layout = -22
    /// Two tensors share memory.
    case overlap = -23
    /// A call out of order: a step before gradients are bound, in evaluation mode, or after the scope of the memory.
    case sequence = -30
    /// The method needs something that was not given: a loss, an input.
    case needs = -31
    /// A NaN or an infinity where policy or method refuse one.
    case nonfinite = -40
    /// A factorisation failed.
    case numeric = -41
    /// A checkpoint that is damaged or foreign.
    case format = -50
    /// A checkpoint of a newer version.
    case version = -51
    /// A checkpoint of another sentence, or of other tensors.
    case mismatch = -52
    /// A file that cannot be read or written.
    case file = -53
    case space = -54
    /// Not available for this method.
    case unsupported = -60
  }

  public let code: Code
  /// Names the argument, what was expected and what came; of a sentence it shows the place.
  public let message: String

  public var description: String { "\(code): \(message)" }

  init(_ failure: Failure) {
    code = Code(rawValue: failure.status) ?? .internal
    message = ThalwegError.spellings.reduce(failure.message) { $0.replacing($1.engine, with: $1.here) }
  }

  /// The engine names calls as C spells them.
  private static let spellings: [(engine: String, here: String)] = [
    ("call add_parameters first", "call add(parameters:) first"),
    ("call bind_gradients first", "call bind(gradients:) first"),
    ("call set_mode(train) first", "call train() first"),
    ("call next and answer its requests", "answer them: step { request in ... }, or next()"),
    ("answer with answer_samples", "answer with request.answer(samples:)"),
    ("answer with answer_matrix", "answer with request.answer(matrices:)"),
    ("data is NULL but", "its buffer is nil but"),
  ]
}

/// Runs `body`; a failure of the engine becomes a public error.
func checked<R>(_ body: () throws(Failure) -> R) throws(ThalwegError) -> R {
  do { return try body() } catch { throw ThalwegError(error) }
}

/// Calls `body` with the bytes of an array.
func withBytes(of bytes: [UInt8], _ body: (UnsafeRawBufferPointer) throws(Failure) -> Void) throws(Failure) {
  try bytes.withUnsafeBufferPointer { (p) throws(Failure) in try body(UnsafeRawBufferPointer(p)) }
}

/// The bytes that `save` hands out piece by piece, after it has said how many they are.
func collected(
  _ save: ((Int) throws(Failure) -> Void, (UnsafeRawBufferPointer) throws(Failure) -> Void) throws(Failure) -> Void
) throws(Failure) -> [UInt8] {
  var bytes: [UInt8] = []
  try save(
    { (size) throws(Failure) in
      try Memory.ask(size)
      bytes.reserveCapacity(size)
    }, { (piece) throws(Failure) in bytes.append(contentsOf: piece) })
  return bytes
}
