import Foundation
import XCTest

@testable import ThalwegRunner
@testable import ThalwegCore
@testable import ThalwegMatrix
@testable import ThalwegMethods
@testable import ThalwegObjectives
@testable import ThalwegSets
@testable import ThalwegSolvers

/// What a layer may name, by reading the sources. Exceptions stand in the lists, so that each new one is written down.
final class LayerTests: XCTestCase {
  private static let sources = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .appendingPathComponent("../../Sources").standardized

  /// Lines of code below a folder, without comments, as (file, number, text).
  private func lines(_ folder: String, comments: Bool = false) throws -> [(String, Int, String)] {
    let root = LayerTests.sources.appendingPathComponent(folder)
    let files =
      FileManager.default.enumerator(at: root, includingPropertiesForKeys: nil)?.compactMap { $0 as? URL } ?? []
    return try files.filter { $0.pathExtension == "swift" }.flatMap { file in
      try String(contentsOf: file, encoding: .utf8).components(separatedBy: "\n").enumerated().compactMap { k, line in
        let code = comments ? line : line.components(separatedBy: "//")[0]
        return code.isEmpty ? nil : (file.lastPathComponent, k + 1, code)
      }
    }
  }
  private func words(_ line: String) -> Set<String> {
    Set(line.split { !($0.isLetter || $0.isNumber || $0 == "_") }.map(String.init))
  }

  func testMethodsDoNotNameTheRunner() throws {
    let runner: Set = [
      "Optimizer", "Record", "Threads", "Program", "Checkpoint", "Branch", "SlotStore", "Layout", "Frame",
    ]
    let families = ["ThalwegMethods", "ThalwegMatrix", "ThalwegSets", "ThalwegObjectives", "ThalwegSolvers"]
    let found = try families.flatMap { try lines($0) }
    XCTAssertGreaterThan(found.count, 3000)
    for (file, number, line) in found where !line.contains("\"") {
      XCTAssertTrue(words(line).isDisjoint(with: runner), "\(file):\(number): \(line)")
    }
  }

  func testTheEngineDoesNotNamePipelines() throws {
    let above: Set = ["Optimizer", "Stage", "Branch", "Method", "Hyper", "Checkpoint", "Registry", "Frame", "Compiler"]
    for (file, number, line) in try lines("ThalwegCore/Engine") {
      XCTAssertTrue(words(line).isDisjoint(with: above), "\(file):\(number): \(line)")
    }
  }

  /// Engine and pipeline work on what methods say of themselves.
  func testNoMethodIsCalledByItsName() throws {
    let exceptions: Set = ["route", "constant"]  // parts of the grammar: a number may stand for a schedule
    let names = Set(Registry.names()).subtracting(exceptions)
    for (file, number, line) in try lines("ThalwegCore/Engine") + lines("ThalwegRunner") {
      // what stands between two quotes
      let quoted = line.split(separator: "\"", omittingEmptySubsequences: false).dropFirst().dropLast().map(String.init)
      XCTAssertTrue(names.isDisjoint(with: quoted), "\(file):\(number): \(line)")
    }
  }

  /// A misspelt hyper-parameter would be NaN, 0 or false without a word: what methods read is one of somebody's.
  func testWhatMethodsReadIsDeclared() throws {
    let declared = Set(Registry.names().flatMap { Registry.find($0)?.parameters.map(\.name) ?? [] })
    let members: Set = ["given", "node", "ofHeld", "numbers", "values", "parameters", "hasLists", "schedules"]
    let call = /\bh\.(?:integer|is|has|list|held|schedules)\("(\w+)"/, member = /\bh\.(\w+)\b(?!\()/
    var read = 0
    for folder in ["ThalwegMethods", "ThalwegMatrix", "ThalwegSets", "ThalwegObjectives", "ThalwegSolvers"] {
      for (file, number, line) in try lines(folder) {
        let names = line.matches(of: call).map { String($0.1) } + line.matches(of: member).map { String($0.1) }
        for name in names where !members.contains(name) {
          XCTAssertTrue(declared.contains(name), "\(file):\(number): no method has a hyper-parameter `\(name)`")
          read += 1
        }
      }
    }
    XCTAssertGreaterThan(read, 1000)
  }

  func testWidth() throws {
    for (file, number, line) in try lines("", comments: true) {
      XCTAssertLessThanOrEqual(line.count, 120, "\(file):\(number)")
    }
  }
}
