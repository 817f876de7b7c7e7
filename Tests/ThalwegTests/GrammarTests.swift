import CThalweg
import XCTest

@testable import ThalwegRunner
@testable import ThalwegCore
@testable import ThalwegMatrix
@testable import ThalwegMethods
@testable import ThalwegObjectives
@testable import ThalwegSets
@testable import ThalwegSolvers

/// What sentences mean, and what a reader of a wrong one is told.
final class GrammarTests: XCTestCase {
  private func failure(_ sentence: String) -> Failure? {
    do throws(Failure) {
      _ = try Compiler(sentence)
      return nil
    } catch { return error }
  }

  func testStagesArgumentsAndValues() throws {
    let s = try Parser.sentence(
      " adamw ( 1e-3 , beta1 = .9, weight_decay=1_000 ) | sgd(nesterov=true, x=[1, -2.5, inf], y=(adam | sgd), z=\"a b\")"
    )
    XCTAssertEqual(s.map(\.name), ["adamw", "sgd"])
    XCTAssertNil(s[0].arguments[0].name)
    guard case .number(1e-3) = s[0].arguments[0].value, case .number(1000) = s[0].arguments[2].value else {
      return XCTFail("numbers")
    }
    guard case .list(let items) = s[1].arguments[1].value,
      case .number(-.infinity)? = Optional(ValueNode.number(-.infinity))
    else { return XCTFail("list") }
    XCTAssertEqual(items.count, 3)
    XCTAssertEqual(s[1].text, "sgd(nesterov=true, x=[1, -2.5, inf], y=(adam | sgd), z=\"a b\")")
  }

  func testTextReadsBackTheSame() throws {
    for text in [
      "adamw(lr=0.001)", "sgd(lr=0.1, momentum=0.9) | adam", "a(b=c(d=[1, 2], e=(f | g)))", "r(\"*.bias\"=(sgd))",
    ] {
      let once = try Parser.sentence(text).map(\.text).joined(separator: " | ")
      XCTAssertEqual(once, text)
    }
  }

  func testErrorsShowTheSentenceACaretAndTheNearestName() {
    let f = failure("clip_global_norm(1) | adamww(lr=1e-3)")
    XCTAssertEqual(f?.status, tw_status(TW_ERROR_METHOD))
    XCTAssertTrue(f?.message.contains("did you mean `adamw`?") ?? false, f?.message ?? "")
    XCTAssertTrue(f?.message.contains("\n                        ^") ?? false, f?.message ?? "")
    XCTAssertTrue(failure("adamw(beta3=1)")?.message.contains("did you mean `beta1`?") ?? false)
  }

  func testEveryKindOfError() {
    let cases: [(String, Int32)] = [
      ("", TW_ERROR_SYNTAX), ("adamw(", TW_ERROR_SYNTAX), ("adamw(lr=)", TW_ERROR_SYNTAX), ("adamw |", TW_ERROR_SYNTAX),
      ("adamw)", TW_ERROR_SYNTAX),
      ("adamw(lr=1e999)", TW_ERROR_SYNTAX), ("adamw(\"x)", TW_ERROR_SYNTAX),
      (String(repeating: "a(", count: 5000), TW_ERROR_SYNTAX),
      ("adamw(lr=-1)", TW_ERROR_RANGE), ("adamw(beta1=1)", TW_ERROR_RANGE), ("adamw(lr=true)", TW_ERROR_TYPE),
      ("adamw(amsgrad=1)", TW_ERROR_TYPE),
      ("adamw(lr=1, lr=2)", TW_ERROR_NAME), ("adamw(1,2,3,4,5,6,7,8,9,10)", TW_ERROR_NAME),
      ("adamw | sgd", TW_ERROR_METHOD),
      ("sgd(nesterov=true)", TW_ERROR_RANGE),
    ].map { ($0.0, Int32($0.1)) }
    for (sentence, status) in cases {
      let f = failure(sentence)
      XCTAssertEqual(f?.status, status, "\(sentence.prefix(40)): \(f?.message ?? "accepted")")
      XCTAssertFalse(f?.message.isEmpty ?? true)
    }
  }

  /// Random bytes and mutated sentences are refused or read, never trapped on.
  func testFuzz() {
    var state: UInt64 = 1
    func next(_ n: Int) -> Int {
      state = Random.mix(state, 7)
      return Int(state % UInt64(n))
    }
    let seeds = [
      "clip_global_norm(1.0) | adamw(lr=warmup_cosine(peak=3e-4, warmup=10, total=100), weight_decay=0.1) | ema(0.999)",
      "route(matrix=(muon(lr=0.02)), other=(adamw(lr=3e-4)))", "sgd(lr=1e-3, momentum=0.9) | prox(l1(1e-4))",
    ]
    let alphabet = Array("abcdefglmnorstuw(),=|[]\"._-+0123456789e \u{0}é".utf8)
    for round in 0..<20_000 {
      var bytes = Array(seeds[round % seeds.count].utf8)
      for _ in 0...next(4) {
        switch next(3) {
        case 0: bytes[next(bytes.count)] = alphabet[next(alphabet.count)]
        case 1: bytes.insert(alphabet[next(alphabet.count)], at: next(bytes.count))
        default: if bytes.count > 1 { bytes.remove(at: next(bytes.count)) }
        }
      }
      _ = failure(String(decoding: bytes, as: UTF8.self))
    }
  }

  func testEveryMethodDescribesItself() {
    var names = Set<String>()
    for r in Registry.all {
      let m = r.method
      XCTAssertTrue(names.insert(m.name).inserted, "\(m.name) is registered twice")
      XCTAssertFalse(m.summary.isEmpty || m.rule.isEmpty, "\(m.name) lacks its summary or rule")
      // plumbing and textbook schedules have no paper
      switch r.component {
      case .adapter, .route, .schedule: break
      default: XCTAssertFalse(m.source.isEmpty, "\(m.name) lacks its source")
      }
      XCTAssertEqual(Set(m.parameters.map(\.name)).count, m.parameters.count, m.name)
      for p in m.parameters {
        XCTAssertFalse(p.meaning.isEmpty, "\(m.name).\(p.name)")
        if case .number(let x)? = p.standard {
          XCTAssertNoThrow(try p.check(x, of: m.name), "the default of \(m.name).\(p.name) is out of its range")
        }
      }
    }
  }
}
