"""Alignment: how alike two systems' responses to the same samples are."""

from mechint_core.alignment.cka import CKAConfig as CKAConfig, CKAResult as CKAResult, cka as cka
from mechint_core.alignment.rdm import RDMConfig as RDMConfig, RDMResult as RDMResult, rdm as rdm
from mechint_core.alignment.rsa import RSA as RSA, RSAConfig as RSAConfig, RSAResult as RSAResult, rsa as rsa
