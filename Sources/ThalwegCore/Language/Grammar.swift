/// The tree of a sentence, with the positions of its parts in bytes.
///
///     sentence := stage { "|" stage }
///     stage    := name [ "(" [ argument { "," argument } ] ")" ]
///     argument := [ ( name | string ) "=" ] value
///     value    := number | "true" | "false" | "none" | string | stage | "(" sentence ")" | "[" value { "," value } "]"
public struct StageNode: Sendable {
  public var name: String
  public var arguments: [ArgumentNode]
  public var position: Int
  public init(name: String, arguments: [ArgumentNode], position: Int) {
    (self.name, self.arguments, self.position) = (name, arguments, position)
  }
}

public struct ArgumentNode: Sendable {
  public var name: String?
  public var value: ValueNode
  public var position: Int
  public init(name: String?, value: ValueNode, position: Int) {
    (self.name, self.value, self.position) = (name, value, position)
  }
}

public indirect enum ValueNode: Sendable {
  case number(Double)
  case word(StageNode)  // a bare name or a stage: a flag, a choice, a schedule, a regularizer, ...
  case string(String)
  case sentence([StageNode])
  case list([ValueNode])
}

/// Reads sentences. Errors show the sentence, a caret, and what was expected.
public struct Parser {
  private let bytes: [UInt8]
  private var i = 0
  private var depth = 0
  /// Deeper than any pipeline needs, and shallow enough for the small stacks of threads.
  private static let deepest = 24
  private static let longest = 65536

  private init(_ text: String) { bytes = Array(text.utf8) }

  public static func sentence(_ text: String, trusted: Bool = false) throws(Failure) -> [StageNode] {
    guard trusted || text.utf8.count <= longest else {
      throw Failure(Status.syntax, "the sentence has \(text.utf8.count) bytes; at most \(longest) are read")
    }
    var p = Parser(text)
    let stages = try p.sentence()
    p.space()
    if p.i < p.bytes.count { throw p.failure("expected `|` or the end") }
    return stages
  }

  public static func value(_ text: String, trusted: Bool = false) throws(Failure) -> ValueNode {
    guard trusted || text.utf8.count <= longest else { throw Failure(Status.syntax, "the value is too long") }
    var p = Parser(text)
    let v = try p.value()
    p.space()
    if p.i < p.bytes.count { throw p.failure("expected the end of the value") }
    return v
  }

  /// A byte in a message, which is one line for what it says.
  private static func shown(_ c: UInt8) -> UInt8 { c < 32 || c == 127 ? UInt8(ascii: " ") : c }

  /// The sentence (cut to a window around the position) with a caret under it.
  public static func pointer(_ text: String, _ position: Int) -> String {
    let b = Array(text.utf8)
    let start = max(0, min(position, b.count) - 60), end = min(b.count, start + 120)
    let shown = b[start..<end].map(Parser.shown)
    // Of what is shown: a line break of two bytes is two blanks there.
    let lead = String(decoding: shown[..<(max(start, min(position, b.count)) - start)], as: UTF8.self).count
    return "\n  " + String(decoding: shown, as: UTF8.self) + "\n  " + String(repeating: " ", count: lead) + "^"
  }

  private func failure(_ what: String) -> Failure {
    let next = bytes[i..<min(i + 12, bytes.count)].map(Parser.shown)
    let found = next.isEmpty ? "found the end" : "found `\(String(decoding: next, as: UTF8.self))`"
    return Failure(
      Status.syntax, "\(what) at position \(i), \(found)" + Parser.pointer(String(decoding: bytes, as: UTF8.self), i))
  }

  private mutating func space() {
    while i < bytes.count, bytes[i] == 32 || (bytes[i] >= 9 && bytes[i] <= 13) { i += 1 }
  }
  private mutating func take(_ c: Character) -> Bool {
    space()
    if i < bytes.count, bytes[i] == c.asciiValue { i += 1; return true }
    return false
  }
  private mutating func enter() throws(Failure) {
    depth += 1
    if depth > Parser.deepest { throw failure("nested deeper than \(Parser.deepest)") }
  }

  private mutating func sentence() throws(Failure) -> [StageNode] {
    var stages = [try stage()]
    while take("|") { stages.append(try stage()) }
    return stages
  }

  private static func starts(_ c: UInt8) -> Bool { (c >= 97 && c <= 122) || (c >= 65 && c <= 90) || c == 95 }
  private static func digit(_ c: UInt8) -> Bool { c >= 48 && c <= 57 }

  private mutating func name() -> String? {
    space()
    guard i < bytes.count, Parser.starts(bytes[i]) else { return nil }
    let start = i
    while i < bytes.count, Parser.starts(bytes[i]) || Parser.digit(bytes[i]) { i += 1 }
    return String(decoding: bytes[start..<i], as: UTF8.self)
  }

  private mutating func stage() throws(Failure) -> StageNode {
    space()
    let position = i
    guard let name = name() else { throw failure("expected a method name") }
    var arguments: [ArgumentNode] = []
    if take("(") {
      try enter()
      if !take(")") {
        repeat { arguments.append(try argument()) } while take(",")
        if !take(")") { throw failure("expected `,` or `)`") }
      }
      depth -= 1
    }
    return StageNode(name: name, arguments: arguments, position: position)
  }

  private mutating func argument() throws(Failure) -> ArgumentNode {
    space()
    let position = i
    if i < bytes.count, bytes[i] == UInt8(ascii: "\"") {
      let s = try string()
      if take("=") { return ArgumentNode(name: s, value: try value(), position: position) }
      return ArgumentNode(name: nil, value: .string(s), position: position)
    }
    if let n = name() {
      if take("=") { return ArgumentNode(name: n, value: try value(), position: position) }
      i = position
    }
    return ArgumentNode(name: nil, value: try value(), position: position)
  }

  private mutating func string() throws(Failure) -> String {
    i += 1
    let start = i
    while i < bytes.count, bytes[i] != UInt8(ascii: "\"") { i += 1 }
    guard i < bytes.count else { throw failure("expected a closing quote") }
    i += 1
    return String(decoding: bytes[start..<(i - 1)], as: UTF8.self)
  }

  private mutating func value() throws(Failure) -> ValueNode {
    space()
    guard i < bytes.count else { throw failure("expected a value") }
    let c = bytes[i]
    if c == UInt8(ascii: "\"") { return .string(try string()) }
    if take("(") {
      try enter()
      let inner = try sentence()
      if !take(")") { throw failure("expected `|` or `)`") }
      depth -= 1
      return .sentence(inner)
    }
    if take("[") {
      try enter()
      var items: [ValueNode] = []
      if !take("]") {
        repeat { items.append(try value()) } while take(",")
        if !take("]") { throw failure("expected `,` or `]`") }
      }
      depth -= 1
      return .list(items)
    }
    if Parser.starts(c) {
      let word = try stage()
      if word.arguments.isEmpty, word.name == "inf" { return .number(.infinity) }
      return .word(word)
    }
    return .number(try number())
  }

  private mutating func number() throws(Failure) -> Double {
    let start = i
    var digits: [UInt8] = []
    if i < bytes.count, bytes[i] == UInt8(ascii: "-") || bytes[i] == UInt8(ascii: "+") {
      digits.append(bytes[i]); i += 1
    }
    if i + 2 < bytes.count, bytes[i..<(i + 3)].elementsEqual("inf".utf8) {
      i += 3
      return digits.first == UInt8(ascii: "-") ? -.infinity : .infinity
    }
    while i < bytes.count {
      let c = bytes[i]
      let exponentSign = (c == UInt8(ascii: "-") || c == UInt8(ascii: "+")) && (digits.last == 101 || digits.last == 69)
      if c == 95, let last = digits.last, Parser.digit(last) { i += 1; continue }  // 100_000
      guard Parser.digit(c) || c == 46 || c == 101 || c == 69 || exponentSign else { break }
      digits.append(c)
      i += 1
    }
    guard let value = Double(String(decoding: digits, as: UTF8.self)), value.isFinite else {
      i = start
      throw failure("expected a value")
    }
    return value
  }
}

extension ValueNode {
  /// The value as a sentence writes it.
  public var text: String {
    switch self {
    case .number(let x): ThalwegCore.text(x)
    case .word(let s): s.text
    case .string(let s): "\"\(s)\""
    case .sentence(let s): "(" + s.map(\.text).joined(separator: " | ") + ")"
    case .list(let items): "[" + items.map(\.text).joined(separator: ", ") + "]"
    }
  }
}

extension StageNode {
  /// A schedule without what it remembers.
  public var withoutMemory: StageNode {
    var node = self
    node.arguments.removeAll { $0.name == "memory" }
    return node
  }
  /// What a schedule is written to remember.
  public func memory() throws(Failure) -> [Double]? {
    guard let argument = arguments.last(where: { $0.name == "memory" }) else { return nil }
    guard case .list(let items) = argument.value else {
      throw Failure(
        Status.type, "\(name): `memory` must be a list of numbers, got \(argument.value.text)", at: argument.position)
    }
    var numbers: [Double] = []
    for item in items {
      guard case .number(let x) = item else {
        throw Failure(Status.type, "\(name): `memory` must be a list of numbers", at: argument.position)
      }
      numbers.append(x)
    }
    return numbers
  }
  public var text: String {
    guard !arguments.isEmpty else { return name }
    let list = arguments.map { a -> String in
      guard let n = a.name else { return a.value.text }
      let plain = n.utf8.allSatisfy {
        ($0 >= 97 && $0 <= 122) || ($0 >= 65 && $0 <= 90) || $0 == 95 || ($0 >= 48 && $0 <= 57)
      }
      return (plain ? n : "\"\(n)\"") + "=" + a.value.text
    }
    return name + "(" + list.joined(separator: ", ") + ")"
  }
}
