import CThalweg

/// An error that crosses the C ABI: its status, and a sentence that a user can act on.
public struct Failure: Error, Sendable {
  public let status: tw_status
  public let message: String
  /// Where in the sentence, in bytes, when that is known better than the stage.
  public let position: Int?
  public init(_ status: Int, _ message: String, at position: Int? = nil) {
    self.status = tw_status(status)
    (self.message, self.position) = (message, position)
  }
  /// The same, about a stage or something in it: where that is, unless it is known better.
  public func within(_ node: StageNode) -> Failure { Failure(Int(status), message, at: position ?? node.position) }
  /// The same with the name of what it is about in front, once.
  public func of(_ name: String) -> Failure {
    message.hasPrefix(name + ":") ? self : Failure(Int(status), "\(name): \(message)")
  }
}

public enum Status {
  public static let ok = Int(TW_OK), more = Int(TW_MORE), skipped = Int(TW_SKIPPED)
  public static let `internal` = Int(TW_ERROR_INTERNAL), memory = Int(TW_ERROR_MEMORY),
    argument = Int(TW_ERROR_ARGUMENT)
  public static let handle = Int(TW_ERROR_HANDLE), busy = Int(TW_ERROR_BUSY), count = Int(TW_ERROR_COUNT)
  public static let syntax = Int(TW_ERROR_SYNTAX), method = Int(TW_ERROR_METHOD), name = Int(TW_ERROR_NAME)
  public static let type = Int(TW_ERROR_TYPE), range = Int(TW_ERROR_RANGE)
  public static let dtype = Int(TW_ERROR_DTYPE), shape = Int(TW_ERROR_SHAPE), layout = Int(TW_ERROR_LAYOUT)
  public static let overlap = Int(TW_ERROR_OVERLAP)
  public static let sequence = Int(TW_ERROR_SEQUENCE), needs = Int(TW_ERROR_NEEDS)
  public static let nonfinite = Int(TW_ERROR_NONFINITE), numeric = Int(TW_ERROR_NUMERIC)
  public static let format = Int(TW_ERROR_FORMAT), version = Int(TW_ERROR_VERSION), mismatch = Int(TW_ERROR_MISMATCH)
  public static let file = Int(TW_ERROR_FILE), space = Int(TW_ERROR_SPACE), unsupported = Int(TW_ERROR_UNSUPPORTED)
}

/// The name among `candidates` that is nearest to `name` (edit distance at most a third of its length), for "did you
/// mean".
public func nearest(_ name: String, _ candidates: [String]) -> String? {
  // a class name in Python is one slip, whatever its capitals
  func folded(_ s: String) -> [UInt8] { s.utf8.prefix(64).map { $0 >= 65 && $0 <= 90 ? $0 | 32 : $0 } }
  let a = folded(name)
  var best: (distance: Int, name: String)?
  for candidate in candidates {
    let b = folded(candidate)
    if abs(a.count - b.count) > 4 { continue }
    // Damerau's distance: two neighbours exchanged are one slip.
    var before = [Int](repeating: 0, count: b.count + 1), row = Array(0...b.count)
    for i in 0..<a.count {
      var next = [i + 1]
      for j in 0..<b.count {
        var d = min(row[j] + (a[i] == b[j] ? 0 : 1), row[j + 1] + 1, next[j] + 1)
        if i > 0, j > 0, a[i] == b[j - 1], a[i - 1] == b[j] { d = min(d, before[j - 1] + 1) }
        next.append(d)
      }
      (before, row) = (row, next)
    }
    // of two equally near names, the one that is as long as what was written
    let distance = row[b.count] * 2 + (a.count == b.count ? 0 : 1)
    if row[b.count] <= max(1, a.count / 3), distance < best?.distance ?? Int.max { best = (distance, candidate) }
  }
  return best?.name
}

/// " (did you mean `x`?)", or "".
public func suggestion(_ name: String, _ candidates: [String]) -> String {
  nearest(name, candidates).map { " (did you mean `\($0)`?)" } ?? ""
}

/// A number as a sentence writes it: shortest decimal form, without a trailing ".0".
public func text(_ value: Double) -> String {
  if value == 0, value.sign == .minus { return "-0" }
  if value == value.rounded(), abs(value) < 1e15 { return String(Int64(value)) }
  return value == .infinity ? "inf" : value == -.infinity ? "-inf" : String(value)
}
