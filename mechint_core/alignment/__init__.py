"""Alignment: how alike two systems' responses to the same samples are."""

from mechint_core.alignment.bootstrap import (
    BootstrapConfig as BootstrapConfig,
    BootstrapResult as BootstrapResult,
    bootstrap as bootstrap,
)
from mechint_core.alignment.brain_alignment import (
    BrainAlignmentConfig as BrainAlignmentConfig,
    BrainAlignmentResult as BrainAlignmentResult,
    brain_alignment as brain_alignment,
)
from mechint_core.alignment.brain_trajectory import (
    BrainTrajectoryConfig as BrainTrajectoryConfig,
    BrainTrajectoryResult as BrainTrajectoryResult,
    brain_trajectory as brain_trajectory,
)
from mechint_core.alignment.cca import CCA as CCA, CCAConfig as CCAConfig, CCAResult as CCAResult, cca as cca
from mechint_core.alignment.cka import CKAConfig as CKAConfig, CKAResult as CKAResult, cka as cka
from mechint_core.alignment.common_space import (
    CommonSpaceConfig as CommonSpaceConfig,
    CommonSpaceResult as CommonSpaceResult,
    common_space as common_space,
)
from mechint_core.alignment.compare_rdms import (
    CompareRDMsConfig as CompareRDMsConfig,
    CompareRDMsResult as CompareRDMsResult,
    compare_rdms as compare_rdms,
)
from mechint_core.alignment.encoding_model import (
    EncodingModelConfig as EncodingModelConfig,
    EncodingModelResult as EncodingModelResult,
    encoding_model as encoding_model,
)
from mechint_core.alignment.explainable_variance import (
    ExplainableVarianceConfig as ExplainableVarianceConfig,
    ExplainableVarianceResult as ExplainableVarianceResult,
    explainable_variance as explainable_variance,
)
from mechint_core.alignment.inter_subject_correlation import (
    InterSubjectCorrelationConfig as InterSubjectCorrelationConfig,
    InterSubjectCorrelationResult as InterSubjectCorrelationResult,
    inter_subject_correlation as inter_subject_correlation,
)
from mechint_core.alignment.layer_region_matrix import (
    LayerRegionMatrixConfig as LayerRegionMatrixConfig,
    LayerRegionMatrixResult as LayerRegionMatrixResult,
    layer_region_matrix as layer_region_matrix,
)
from mechint_core.alignment.model_comparison import (
    ModelComparisonConfig as ModelComparisonConfig,
    ModelComparisonResult as ModelComparisonResult,
    model_comparison as model_comparison,
)
from mechint_core.alignment.noise_ceiling import (
    NoiseCeilingConfig as NoiseCeilingConfig,
    NoiseCeilingResult as NoiseCeilingResult,
    noise_ceiling as noise_ceiling,
)
from mechint_core.alignment.permutation_test import (
    PermutationTestConfig as PermutationTestConfig,
    PermutationTestResult as PermutationTestResult,
    permutation_test as permutation_test,
)
from mechint_core.alignment.pls import PLS as PLS, PLSConfig as PLSConfig, PLSResult as PLSResult, pls as pls
from mechint_core.alignment.procrustes import (
    ProcrustesConfig as ProcrustesConfig,
    ProcrustesResult as ProcrustesResult,
    procrustes as procrustes,
)
from mechint_core.alignment.pwcca import PWCCAConfig as PWCCAConfig, PWCCAResult as PWCCAResult, pwcca as pwcca
from mechint_core.alignment.rdm import RDMConfig as RDMConfig, RDMResult as RDMResult, rdm as rdm
from mechint_core.alignment.rdm_panels import rdm_panels as rdm_panels
from mechint_core.alignment.rdm_regression import (
    RDMRegressionConfig as RDMRegressionConfig,
    RDMRegressionResult as RDMRegressionResult,
    rdm_regression as rdm_regression,
)
from mechint_core.alignment.rsa import RSA as RSA, RSAConfig as RSAConfig, RSAResult as RSAResult, rsa as rsa
from mechint_core.alignment.searchlight import (
    SearchlightConfig as SearchlightConfig,
    SearchlightResult as SearchlightResult,
    searchlight as searchlight,
)
from mechint_core.alignment.shape_distance import (
    ShapeDistanceConfig as ShapeDistanceConfig,
    ShapeDistanceResult as ShapeDistanceResult,
    shape_distance as shape_distance,
)
from mechint_core.alignment.svcca import SVCCAConfig as SVCCAConfig, SVCCAResult as SVCCAResult, svcca as svcca
from mechint_core.alignment.time_resolved_rsa import (
    TimeResolvedRSAConfig as TimeResolvedRSAConfig,
    TimeResolvedRSAResult as TimeResolvedRSAResult,
    time_resolved_rsa as time_resolved_rsa,
)
from mechint_core.alignment.variance_partition import (
    VariancePartitionConfig as VariancePartitionConfig,
    VariancePartitionResult as VariancePartitionResult,
    variance_partition as variance_partition,
)
