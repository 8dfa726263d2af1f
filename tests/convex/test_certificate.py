from snn_recon_plugin.convex import Certificate


def test_a_certificate_in_words():
    certificate = Certificate(0.5, 0.25, 0.25, 0.125, 1e-6, False)
    assert str(certificate) == "objective 0.5, gap 2.50e-01, relative gap 1.25e-01 (tol 1e-06: NOT reached)"
    assert "reached)" in str(Certificate(0.5, 0.5, 0.0, 0.0, 1e-6, True))
    assert "NOT" not in str(Certificate(0.5, 0.5, 0.0, 0.0, 1e-6, True))
