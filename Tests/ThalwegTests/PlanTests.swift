import Foundation
import XCTest

@testable import ThalwegRunner
@testable import ThalwegCore
@testable import ThalwegMatrix
@testable import ThalwegMethods
@testable import ThalwegObjectives
@testable import ThalwegSets
@testable import ThalwegSolvers

/// The plans of many sentences as text, beside a file: whoever changes the planner sees what changes with it, and
/// changes the file on purpose (`THALWEG_WRITE_PLANS=1 swift test --filter PlanTests`).
final class PlanTests: XCTestCase {
  private static let file = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent(
    "Plans.txt")

  static let sentences = [
    "sgd(lr=0.1)", "sgd(lr=0.1, momentum=0.9)", "adamw(lr=0.1)", "adam(lr=0.1, weight_decay=0.1)", "amsgrad(lr=0.1)",
    "lion(lr=0.1)",
    "lamb(lr=0.1)", "lars(lr=0.1)", "dog", "dog(layerwise=true)", "dowg", "a_dog", "u_dog", "prodigy", "dadapt_sgd",
    "dadapt_adam",
    "adafactor", "adam_snsm(lr=0.1)", "muon(lr=0.1)", "adam_cm(lr=0.1)", "nigt(lr=0.1)", "polyak_sgd", "sania",
    "sania(precond=hutchinson)",
    "oasis", "oasis(adaptive=false)", "mars(lr=0.1)", "mars(lr=0.1, exact=true)", "svrg(lr=0.1, inner=3)", "spsa",
    "sga_uap(inner_steps=2)", "split_sgd(lr=0.1)", "visual_prompt(lr=0.1)", "schedule_free_adamw(lr=0.1)",
    "sgd(lr=0.1) | schedule_free",
    "adamw(lr=0.1) | ema(0.9)", "sgd(lr=0.1) | swa(start=1, freq=2)", "adamw(lr=0.1) | lookahead",
    "sgd(lr=0.1) | trajectory_moments",
    "clip_global_norm(1) | adamw(lr=0.1)", "clip_global_norm(1, per_tensor=true) | clip_value(1) | sgd(lr=0.1)",
    "coordinate_clip(fraction=0.1) | clip_value(1) | clip_global_norm(1) | adamw(lr=0.1)",
    "gradient_noise | sgd(lr=0.1)",
    "penalty(l2(0.1)) | sgd(lr=0.1)", "penalty(norm_loss(0.1)) | adamw(lr=0.1)", "adam(lr=0.1) | cautious",
    "sgd(lr=0.1, momentum=0.9) | orthogonalize", "sgd(lr=0.1) | cautious | clip_global_norm(1)",
    "adamw(lr=0.1) | prox(l1(0.1))",
    "adamw(lr=0.1) | prox(group_lasso(0.1))", "sgd(lr=0.1) | decoupled(l2(0.1)) | project(l2_ball(1))",
    "sgd(lr=0.1) | manifold(stiefel) | ema(0.9)", "sgd(lr=0.1, momentum=0.9) | nm_sparsity(n=2, m=4)",
    "clip_global_norm(1) | penalty(l1(0.1)) | adamw(lr=0.1) | cautious | prox(l1(0.1)) | ema(0.9)",
    "sam(0.05) | adamw(lr=0.1)", "gradient_accumulate(4) | sam(0.05) | clip_global_norm(1) | adamw(lr=0.1)",
    "pcgrad(tasks=2) | sam(0.05) | sgd(lr=0.1)", "sam(0.05) | oasis", "sam(0.05) | adamw(lr=0.1) | ghost_step",
    "route(matrix=(muon(lr=0.1)), other=(adamw(lr=0.1)))",
    "clip_global_norm(1) | route(matrix=(clip_value(1) | coordinate_clip(fraction=0.1) | muon(lr=0.1)), other=(adamw(lr=0.1))) | ema(0.9)",
    "sam(0.05) | route(matrix=(sam(0.1) | oasis), vector=(tract | sgd(lr=0.1)), other=(sgd(lr=0.1))) | ghost_step",
  ]

  private func names(_ stages: [Stage]) -> String { stages.map(\.name).joined(separator: " ") }

  private func text(_ p: Branch.Pass) -> String {
    var words: [String]
    switch p.work {
    case .measure(let s, let phase): words = ["measure \(s.name) \(phase)"]
    case .save(let s): words = ["save \(s.name)"]
    case .materialise: words = ["materialise"]
    case .direct: words = ["direct"]
    case .update: words = ["update"]
    case .difference: words = ["difference"]
    case .whole(let s): words = ["whole \(s.name)"]
    case .final: words = ["final"]
    case .wholeAfter(let s): words = ["whole after \(s.name)"]
    case .after: words = ["after"]
    }
    if !p.chain.isEmpty { words.append("chain [\(names(p.chain))]") }
    if p.scratchGradient { words.append("gradient from scratch") }
    if p.scratchUpdate { words.append("update from scratch") }
    if !p.updates.isEmpty { words.append("updates [\(names(p.updates))]") }
    if !p.after.isEmpty { words.append("then [\(names(p.after))]") }
    if let m = p.measured, case let also = "measures \(m.stage.name) \(m.phase)", !words[0].hasPrefix("measure ") {
      words.append(also)
    }
    if p.opens { words.append("opens") }
    if p.closes { words.append("closes") }
    return words.joined(separator: ", ")
  }

  private func text(_ sentence: String) throws -> String {
    let c = try Compiler(sentence)
    var lines = [sentence]
    if !c.sources.isEmpty {
      lines.append("  sources " + c.sources.map { $0.name + ($0.branch.map { "@\($0)" } ?? "") }.joined(separator: " "))
    }
    for (b, branch) in c.branches.enumerated() {
      if c.branches.count > 1 { lines.append("  pipeline \(b): \(names(branch.stages))") }
      for (k, segment) in branch.segments.enumerated() {
        for p in segment { lines.append("    \(k) \(text(p))") }
        if segment.isEmpty { lines.append("    \(k) waits") }
      }
    }
    return lines.joined(separator: "\n")
  }

  func testPlans() throws {
    let all = try PlanTests.sentences.map { try text($0) }.joined(separator: "\n\n") + "\n"
    if ProcessInfo.processInfo.environment["THALWEG_WRITE_PLANS"] != nil {
      try all.write(to: PlanTests.file, atomically: true, encoding: .utf8)
    }
    let kept = try String(contentsOf: PlanTests.file, encoding: .utf8)
    for (a, b) in zip(all.components(separatedBy: "\n\n"), kept.components(separatedBy: "\n\n")) {
      XCTAssertEqual(a, b)
    }
    XCTAssertEqual(all, kept)
  }
}
